"""A line as its file describes it: everything opened, run, changed on SIGHUP, and closed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

import msgspec

from rdedge.errors import RdedgeError
from rdedge.events import Event, Severity
from rdedge.inspector import Inspector
from rdedge.line.announcer import Announcer
from rdedge.line.checked import Problems
from rdedge.line.config import Camera, LineConfig, Page
from rdedge.line.health import Health, HealthServer
from rdedge.line.heat import HeatWatch
from rdedge.line.lane import Lane, LaneCounts, Settings
from rdedge.line.loop import Shown
from rdedge.line.outlets import Outlets
from rdedge.line.plan import Plan, make_plan
from rdedge.line.service import serve
from rdedge.line.together import at_once
from rdedge.page import OperatorPage
from rdedge.sinks import Sink
from rdedge.sinks.record import new_session
from rdedge.sources import open_source
from rdedge.stream import Stream

CHANGEABLE = ("threshold", "min_area_px", "roi_xywh", "ignore", "ignore_image", "k_of_n", "sinks")  # of a camera


class Line:
    """A context manager; closing it releases what ``run`` has not."""

    def __init__(self, plan: Plan, page: Page | None = None):
        """Opens engines, sinks, page and metrics; cameras are opened by ``run``. ``page``: in place of the file's.

        Raises RdedgeError.
        """
        self.plan = plan
        self.session = new_session()
        self.announcer = Announcer()
        self._stack = ExitStack()
        try:
            self._open(page or plan.config.page)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, page: Page | None) -> None:
        config = self.plan.config
        self._inspectors = {
            name: self._stack.enter_context(
                Inspector.open(bundle.path, backend=config.backend, precision=config.precision)
            )
            for name, bundle in self.plan.bundles.items()
        }
        self._page = None if page is None else self._open_page(page)
        self._page_sinks: dict[str, Sink] = {}
        self._outlets: dict[str, Outlets] = {}
        self._stack.callback(self._close_sinks)
        self.lanes = [self._open_lane(camera) for camera in config.camera]
        if self._page is not None:
            self.announcer.set_listeners("", [self._page.event])
        self.heat = HeatWatch(self.announcer)
        self._stack.callback(self.heat.close)
        self.health = Health(self.lanes, self.announcer, self.heat)
        self.server = None
        if config.metrics is not None:
            self.server = HealthServer(config.metrics.bind, config.metrics.port, self.health)
            self._stack.callback(self.server.close)

    @property
    def page_url(self) -> str | None:
        """Where the operator page is."""
        return None if self._page is None else self._page.url

    def run(self, on_shown: Shown) -> list[LaneCounts]:
        """See rdedge.line.service.serve."""
        keep_warm_ms = self.plan.config.keep_warm_ms
        return serve(
            self.lanes,
            drain_s=self.plan.config.drain_s,
            keep_warm_s=math.inf if keep_warm_ms is None else keep_warm_ms / 1e3,
            on_shown=on_shown,
            close_sinks=self._close_sinks,
            health=self.health,
            reload=self.reload,
        )

    def reload(self) -> None:
        """Read the file again: thresholds, masks, K of N and sinks change at once; of the rest is said what waits for a
        restart. A file with errors changes nothing."""
        try:
            plan = make_plan(self.plan.path)
        except Problems as exc:
            self._say("config", "error", f"the old settings stay in force; {'; '.join(exc.problems)}")
            return
        config = _with_changes(self.plan.config, plan.config)
        later = list(_differences(config, plan.config))
        rules = {name: plan.rules.get(name, old) for name, old in self.plan.rules.items()}
        self.plan = replace(self.plan, config=config, rules=rules)
        for lane, camera in zip(self.lanes, config.camera, strict=True):
            self._change(lane, camera)
        waits = f"; these wait for a restart: {', '.join(later)}" if later else ""
        self._say("config", "warning" if later else "info", f"{self.plan.path} was read again{waits}")

    def close(self) -> None:
        """May be called twice."""
        self._stack.close()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _open_page(self, page: Page) -> OperatorPage:
        token = self.plan.secret(page.token_file)
        opened = OperatorPage(page.bind, page.port, token, session=self.session, report=self.announcer)
        self._stack.callback(opened.close)
        return opened

    def _open_lane(self, camera: Camera) -> Lane:
        plan, config = self.plan, self.plan.config
        inspector = self._inspectors[config.bundle_of(camera)]
        roi_xywh = None if camera.tiles is not None else inspector.bundle.contract.input.roi_xywh
        self._outlets[camera.name] = outlets = Outlets(
            camera.name,
            session=self.session,
            folder=plan.file(config.out) / camera.name,
            roi_xywh=roi_xywh,
            file=plan.file,
            secret=plan.secret,
            drain_s=config.drain_s,
            on_event=self.announcer,
        )
        outlets.set(config.sinks_of(camera))
        if self._page is not None:
            self._page_sinks[camera.name] = self._page.sink(camera.name, roi_xywh)
        limits = camera.watch.limits()
        source = open_source(plan.uri(camera), camera=camera.name, on_event=self.announcer, limits=limits)
        stream = Stream(
            source,
            policy=camera.policy,
            queue_size=camera.queue_size,
            max_age_ms=camera.max_age_ms,
            camera=camera.name,
            on_event=self.announcer,
        )
        self._stack.callback(stream.close)
        self.announcer.set_listeners(camera.name, outlets.listeners)
        settings = self._settings(camera)
        return Lane(camera.name, source, stream, inspector, settings, on_event=self.announcer, forgives=True)

    def _settings(self, camera: Camera) -> Settings:
        outlets, page_sink = self._outlets[camera.name], self._page_sinks.get(camera.name)
        return Settings(
            rules=self.plan.rules[camera.name],
            k_of_n=camera.k_of_n,
            sinks=[*outlets.sinks, *([] if page_sink is None else [page_sink])],
            actuators=outlets.actuators,
        )

    def _change(self, lane: Lane, camera: Camera) -> None:
        outlets = self._outlets[camera.name]
        try:
            outlets.set(self.plan.config.sinks_of(camera))
        except RdedgeError as exc:
            self._say("config", "error", f"sinks of {camera.name} are as they were: {exc}")
        self.announcer.set_listeners(camera.name, outlets.listeners)
        lane.change(self._settings(camera))

    def _close_sinks(self) -> None:
        at_once(outlets.close for outlets in self._outlets.values())

    def _say(self, kind: str, severity: Severity, text: str) -> None:
        self.announcer(Event(kind=kind, severity=severity, text=text, camera=""))


def _with_changes(old: LineConfig, new: LineConfig) -> LineConfig:
    """The old settings with those of the new that may change while the line runs."""
    wanted = {camera.name: camera for camera in new.camera}

    def changed(camera: Camera) -> Camera:
        fields = {} if camera.name not in wanted else {key: getattr(wanted[camera.name], key) for key in CHANGEABLE}
        return msgspec.structs.replace(camera, **fields)

    return msgspec.structs.replace(old, sinks=new.sinks, camera=tuple(map(changed, old.camera)))


def _differences(one: LineConfig, other: LineConfig) -> Iterator[str]:
    """What of a file is not in force."""
    for key in one.__struct_fields__:
        if key != "camera" and getattr(one, key) != getattr(other, key):
            yield key
    have, want = ({camera.name: camera for camera in config.camera} for config in (one, other))
    for name in have.keys() ^ want.keys():
        yield f"camera {name}"
    for name in have.keys() & want.keys():
        for key in have[name].__struct_fields__:
            if getattr(have[name], key) != getattr(want[name], key):
                yield f"{key} of camera {name}"
