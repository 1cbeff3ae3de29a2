"""The board's end of a deploy: everything between the last byte copied and a proved bundle, or the old one again."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version as version_of_package
from pathlib import Path
from typing import Protocol

import msgspec

from rdedge.bundle import Bundle, open_bundle
from rdedge.deploy.messages import Done, Order
from rdedge.deploy.steps import engine_command, run, trial_command
from rdedge.deploy.store import State, Store, now_utc
from rdedge.deploy.watch import Expected, Look, as_report, look, watch
from rdedge.errors import DeployError, RdedgeError, UsageError
from rdedge.line.checked import Problems
from rdedge.line.config import LineConfig, Metrics, read_config
from rdedge.line.plan import make_plan

LINES_FOLDER = Path("/etc/rdedge")
_RESTART_LINE = Path("/opt/rdedge/restart_line")  # what jetson/install.sh --deploy-key lets users without rights run
_ENGINE_S, _TRIAL_S, _SELFTEST_S, _RESTART_S = 7200.0, 900.0, 7200.0, 300.0


class Channel(Protocol):
    """To the workstation, as long as it is there."""

    def say(self, text: str) -> None:
        """A step was made; never raises."""

    def receive(self, folder: Path, limit_bytes: int) -> None:
        """Until the files are in the folder. Raises DeployError if they will not come, OSError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """A line of this board, an order for it, and who wants to hear of it."""

    line_file: Path
    config: LineConfig
    metrics: Metrics
    store: Store
    order: Order
    say: Callable[[str], None]

    @property
    def restart_command(self) -> str:
        """For the shell. A unit that failed too often is not started again before it is reset."""
        if self.order.restart is not None:
            return self.order.restart
        if os.geteuid() != 0 and _RESTART_LINE.exists():
            return f"sudo -n {_RESTART_LINE} {shlex.quote(self.line_file.stem)}"
        unit = shlex.quote(f"rdedge@{self.line_file.stem}")
        return f"systemctl reset-failed {unit} 2>/dev/null; systemctl restart {unit}"

    def look(self) -> Look | None:
        """The line now."""
        return look(self.metrics)


def carry_out(order: Order, channel: Channel) -> Done:
    """Raises RdedgeError; its problem says what the line runs then, if anything of it was changed."""
    site = _site(order, channel.say)
    if order.action == "status":
        return _status(site)
    try:
        with site.store.locked(order.owner):
            removed = site.store.clean_up(order.keep)
            if removed:
                channel.say(f"removed {', '.join(removed)}, left by a deploy that was cut off")
            return _roll_back(site) if order.action == "rollback" else _deploy(site, channel)
    except OSError as exc:
        raise _disk_error(site, exc) from exc


def _disk_error(site: _Site, exc: OSError) -> DeployError:
    where = exc.filename or site.store.folder
    remedy = f"mend that (space, permissions) on the board and deploy again; {_nothing_changed(site)}"
    return DeployError(f"{where}: {exc.strerror or exc}", remedy=remedy)


def _site(order: Order, say: Callable[[str], None]) -> _Site:
    path = _line_file(order.line)
    try:
        config = read_config(path)
    except Problems as exc:
        raise UsageError("; ".join(exc.problems), remedy="correct the line's file on the board") from exc
    if config.bundle is None:
        raise UsageError(f"{path}: the line has no bundle of its own", remedy="name one there, outside of [[camera]]")
    if config.metrics is None:
        raise UsageError(f"{path}: has no [metrics], by which a deploy watches the line", remedy="add the table")
    store = Store(path.parent / config.bundle)
    return _Site(line_file=path, config=config, metrics=config.metrics, store=store, order=order, say=say)


def _line_file(line: str | None) -> Path:
    if line is not None:
        return Path(line).absolute() if "/" in line else LINES_FOLDER / f"{line}.toml"
    found = sorted(LINES_FOLDER.glob("*.toml"))
    if len(found) != 1:
        names = ", ".join(path.stem for path in found) or "none"
        raise UsageError(f"{LINES_FOLDER} on the board has the lines: {names}", remedy="name one with --line")
    return found[0]


def _deploy(site: _Site, channel: Channel) -> Done:
    order, store = site.order, site.store
    if order.version is None:
        raise DeployError("the order names no version", remedy="run `rdedge deploy`")
    if _is_in_force(site, order.version):
        return Done(text=f"version {order.version} is on the line already, and whole")
    with store.incoming(order.size_bytes) as folder:
        channel.receive(folder, order.size_bytes)
        bundle = store.take_in(folder, order.version)
    site.say(f"arrived whole as {bundle.path}")
    try:
        _accepted(site, bundle.path.name)
        _try_beside(site, bundle)
        seen = _switch(site, bundle)
    except (RdedgeError, OSError) as exc:
        with suppress(OSError):  # the reason may be that the disk is full
            store.clean_up(order.keep)
            _note(site, f"{order.version} by {order.owner}: {exc.problem if isinstance(exc, RdedgeError) else exc}")
        raise
    name = bundle.path.name
    older = [proved for proved in store.state().proved if proved != name]
    try:
        store.write_state(State(proved=(name, *older), last=f"{now_utc()} {name} by {order.owner}: {seen}"))
    except OSError as exc:
        raise DeployError(
            f"version {name} is on the line: {seen}; but this could not be written down ({exc.strerror})",
            remedy="make room on the board and deploy it again",
        ) from exc
    store.clean_up(order.keep)
    return Done(text=f"version {name} is on the line: {seen}")


def _is_in_force(site: _Site, version: str) -> bool:
    """Current, proved, whole, accepted, and what the line judges by at this moment."""
    name = site.store.current
    if name is None or name.partition("-")[0] != version or site.store.state().proved[:1] != (name,):
        return False
    now = site.look()
    try:
        bundle = _accepted(site, name)
    except RdedgeError:
        return False
    return now is not None and now.is_turning and bundle.contract.contract_sha256 in now.bundles


def _accepted(site: _Site, name: str) -> Bundle:
    """A version that the line's file takes: whole, of its precision, signed if it asks for that. Raises DeployError."""
    path = site.store.version(name)
    try:
        make_plan(site.line_file, bundle=str(path))
    except Problems as exc:
        raise DeployError(f"the line refuses it: {'; '.join(exc.problems)}", remedy=_nothing_changed(site)) from exc
    return open_bundle(path)


def _nothing_changed(site: _Site) -> str:
    current = site.store.current
    return f"the line goes on with {current}" if current is not None else "the line has no bundle yet"


def _try_beside(site: _Site, bundle: Bundle) -> None:
    """All that can be known before the line is touched. Raises DeployError."""
    remedy = _nothing_changed(site)
    config, order = site.config, site.order
    _build_engine(site, bundle)
    trial = trial_command(bundle.path, config.backend, config.precision, order.max_reject_rate)
    site.say(f"trial: {run('the trial', trial, limit_s=_TRIAL_S, remedy=remedy)[-1]}")
    if order.selftest is not None:
        command = order.selftest.replace("{bundle}", shlex.quote(str(bundle.path)))
        said = run("the self-test", command, limit_s=_SELFTEST_S, remedy=remedy)
        site.say(f"self-test: {said[-1] if said else 'passed'}")


def _build_engine(site: _Site, bundle: Bundle) -> None:
    """Where the line needs one that is not there yet. Raises DeployError."""
    command = engine_command(bundle.path, site.config.backend, site.config.precision)
    if command is not None:
        said = run("building the engine", command, limit_s=_ENGINE_S, remedy=_nothing_changed(site))
        words = ("built ", "kept ", "measured ")
        site.say(f"engine: {next((line for line in said if line.startswith(words)), said[0])}")


def _switch(site: _Site, bundle: Bundle) -> str:
    """To a tried version, and back again unless it proves itself; returns what was seen. Raises DeployError."""
    store, name = site.store, bundle.path.name
    old = store.way_back(name)
    before = site.look()
    with store.prepared(name) as there, store.prepared(old or name) as way_back:  # a full disk is noticed here
        _note(site, f"{name} by {site.order.owner}: is being watched on the line")
        store.put_in_force(there)
        site.say(f"switched to {name}")
        try:
            return _start_and_watch(site, bundle, before)
        except BaseException as exc:
            if old is None:
                if isinstance(exc, RdedgeError):
                    problem = f"{exc.problem}; there is no older bundle, {name} stays"
                    raise DeployError(problem, remedy=exc.remedy) from exc
                raise
            site.say(f"going back to {old}: {exc}")
            store.put_in_force(way_back)
            _restart(site, f"{exc}; {old} is current again, but")
            if isinstance(exc, RdedgeError):
                raise DeployError(f"{exc.problem}; the line is back on {old}", remedy=exc.remedy) from exc
            raise


def _start_and_watch(site: _Site, bundle: Bundle, before: Look | None) -> str:
    restarted_s = time.monotonic()
    _restart(site, "")
    site.say(f"watching the line for {site.order.watch_s:g} s")
    expected = Expected(
        contract_sha256=bundle.contract.contract_sha256,
        restarted_s=restarted_s,
        before=before,
        seconds=site.order.watch_s,
        max_reject_rate=site.order.max_reject_rate,
    )
    return watch(site.look, expected)


def _restart(site: _Site, context: str) -> None:
    command = site.restart_command
    what = f"{context} restarting the line with `{command}`".strip()
    run(what, command, limit_s=_RESTART_S, remedy="see the line's log on the board, or give another --restart")


def _roll_back(site: _Site) -> Done:
    """To the newest proved version before the current one, which is proved no more."""
    store, order = site.store, site.order
    left, target = store.current, store.way_back(store.current)
    if target is None:
        raise DeployError("the board has no other proved version", remedy=_nothing_changed(site))
    bundle = _accepted(site, target)
    _build_engine(site, bundle)  # the board's TensorRT may be another by now
    before = site.look()
    proved = tuple(name for name in store.state().proved if name != left)
    text = f"{now_utc()} back from {left} to {target} by {order.owner}"
    with store.prepared(target) as link:
        store.write_state(State(proved=(target, *(name for name in proved if name != target)), last=text))
        store.put_in_force(link)
    site.say(f"switched to {target}")
    seen = _start_and_watch(site, bundle, before)
    return Done(text=f"the line is back on {target}, {left} is proved no more: {seen}")


def _note(site: _Site, text: str) -> None:
    site.store.write_state(msgspec.structs.replace(site.store.state(), last=f"{now_utc()} {text}"))


def _status(site: _Site) -> Done:
    """What a fleet wants to know of this line."""
    store, current = site.store, site.store.current
    state = store.state()
    report: dict[str, object] = {
        "line": site.line_file.stem,
        "rdedge": version_of_package("rdedge"),
        "backend": site.config.backend,
        "precision": site.config.precision,
        "requires_signature": site.config.require_signature is not None,
        "current": current,
        "is_proved": current is not None and state.proved[:1] == (current,),
        "proved": list(state.proved),
        "last_deploy": state.last,
        "bundle": None if current is None else _described(store.version(current)),
        "health": as_report(site.look()),
    }
    return Done(text=f"{site.line_file.stem}: {current}", report=report)


def _described(path: Path) -> dict[str, object]:
    try:
        contract = open_bundle(path).contract
    except RdedgeError as exc:
        return {"is_whole": False, "problem": str(exc)}
    names = ("contract_sha256", "created_utc")
    return {"is_whole": True, "model": contract.model.name, **{name: getattr(contract, name) for name in names}}
