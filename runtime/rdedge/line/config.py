"""A line's TOML file: cameras, engine, judging rules and sinks, validated whole before anything is opened."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from rdedge.backends import BackendName
from rdedge.contract import Precision
from rdedge.errors import UsageError
from rdedge.line.checked import Problems, faults, read_toml
from rdedge.sources.health import WatchLimits
from rdedge.stream import Policy

_T = TypeVar("_T", bound=msgspec.Struct)
Name = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,40}$")]
Text = Annotated[str, Meta(min_length=1, max_length=1000)]
Px = Annotated[int, Meta(ge=0, le=1_000_000)]
Side = Annotated[int, Meta(ge=1, le=1_000_000)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=3600)]
Megabytes = Annotated[int, Meta(ge=1, le=10_000_000)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every table: immutable, other keys are refused."""


class JsonLines(_Table, frozen=True, kw_only=True):
    """Every verdict as a line of ``verdicts.jsonl``; the folder holds at most keep_files + 1 files."""

    max_mb: Megabytes = 100
    keep_files: Count = 10


class Pictures(_Table, frozen=True, kw_only=True):
    """Pictures of rejects, and of one good part in ``sample_good`` (0: none), within a budget of the disk."""

    max_mb: Megabytes = 1000
    keep_rejects: Count = 100  # the newest are never deleted
    sample_good: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class Tls(_Table, frozen=True, kw_only=True):
    """Verified by the system's authorities or ``ca_file``; with a certificate of our own if asked for."""

    ca_file: Text | None = None
    cert_file: Text | None = None
    key_file: Text | None = None


class Mqtt(_Table, frozen=True, kw_only=True):
    """Verdicts and alarms to a broker, kept on disk while it is away."""

    host: Text
    port: Port = 1883
    topic: Text = "rdedge"
    username: Text | None = None
    password_file: Text | None = None
    tls: Tls | None = None
    spool_mb: Megabytes = 64


class Modbus(_Table, frozen=True, kw_only=True):
    """The latest verdict and counters in eight registers of a PLC, from ``address`` on."""

    host: Text
    port: Port = 502
    device_id: Annotated[int, Meta(ge=0, le=255)] = 1
    address: Annotated[int, Meta(ge=0, le=65528)] = 0
    heartbeat_s: Seconds = 0.5
    hold_s: Seconds = 1.0


class Webhook(_Table, frozen=True, kw_only=True):
    """Verdicts and alarms by HTTP POST, signed, kept on disk while the server is away."""

    url: Annotated[str, Meta(pattern="^https?://", max_length=1000)]
    secret_file: Text | None = None
    tls: Tls | None = None
    spool_mb: Megabytes = 64


class Gpio(_Table, frozen=True, kw_only=True):
    """A pulse on a pin for each rejected part, and a heartbeat on another if named."""

    chip: Text = "/dev/gpiochip0"
    line: Annotated[int, Meta(ge=0, le=1023)] | Text
    pulse_s: Seconds = 0.1
    active_low: bool = False
    heartbeat_line: Annotated[int, Meta(ge=0, le=1023)] | Text | None = None
    on: Literal["anomalous", "good"] = "anomalous"  # "good" is the fail-safe wiring: no pulse, no pass


class Sinks(_Table, frozen=True, kw_only=True):
    """Where verdicts go; a kind without a table is off."""

    jsonl: JsonLines | None = None
    pictures: Pictures | None = None
    mqtt: Mqtt | None = None
    modbus: Modbus | None = None
    webhook: Webhook | None = None
    gpio: Gpio | None = None


class Tiles(_Table, frozen=True, kw_only=True):
    """Pixels of the sensor a tile shows, and what neighbours share at least."""

    tile_wh: tuple[Side, Side]
    overlap_px: Px


class Watch(_Table, frozen=True, kw_only=True):
    """When the camera counts as faulty, in place of the values of rdedge.sources.WatchLimits, which explains them."""

    first_frame_s: Seconds | None = None
    silent_s: Seconds | None = None
    slow_factor: Annotated[float, Meta(gt=1, le=1000)] | None = None
    black_level: Annotated[int, Meta(ge=0, le=254)] | None = None
    saturated_level: Annotated[int, Meta(ge=1, le=255)] | None = None
    frozen_s: Annotated[float, Meta(ge=0, le=3600)] | None = None
    settle_frames: Annotated[int, Meta(ge=1, le=1000)] | None = None
    reopen_s: Seconds | None = None
    retry_s: Seconds | None = None
    retry_cap_s: Seconds | None = None
    refused_retry_s: Seconds | None = None

    def limits(self) -> WatchLimits:
        """The defaults but for what is given."""
        return WatchLimits(**{key: value for key, value in msgspec.structs.asdict(self).items() if value is not None})


Point = tuple[Px, Px]
Polygon = Annotated[tuple[Point, ...], Meta(min_length=3)]


class Camera(_Table, frozen=True, kw_only=True):
    """One camera: where its frames come from and how they are judged. Lengths are pixels of its picture."""

    name: Name
    uri: Text
    policy: Policy
    queue_size: Annotated[int, Meta(ge=1, le=1000)] = 4
    max_age_ms: Annotated[float, Meta(gt=0, le=3_600_000)] | None = None
    bundle: Text | None = None
    threshold: float | None = None
    min_area_px: Px = 0
    roi_xywh: tuple[Px, Px, Side, Side] | None = None
    ignore: tuple[Polygon, ...] = ()
    ignore_image: Text | None = None
    k_of_n: tuple[Annotated[int, Meta(ge=1, le=1000)], Annotated[int, Meta(ge=1, le=1000)]] | None = None
    tiles: Tiles | None = None
    watch: Watch = Watch()
    sinks: Sinks | None = None


class Metrics(_Table, frozen=True, kw_only=True):
    """Health and Prometheus metrics over HTTP."""

    bind: Text = "127.0.0.1"
    port: Port = 9188


class Page(_Table, frozen=True, kw_only=True):
    """The operator page; other addresses than this machine's own need a token."""

    bind: Text = "127.0.0.1"
    port: Port = 8360
    token_file: Text | None = None


class LineConfig(_Table, frozen=True, kw_only=True):
    """The whole file. ``drain_s``: how long a stop may take to judge what waits and to flush the sinks.

    ``require_signature``: a public key or a folder of them, of which one must have signed every bundle.
    ``keep_warm_ms``: without a part for so long, the engine runs for nothing, so that its clocks stay up.
    """

    out: Text
    camera: Annotated[tuple[Camera, ...], Meta(min_length=1, max_length=64)]
    bundle: Text | None = None
    require_signature: Text | None = None
    backend: BackendName = "onnxruntime"
    precision: Precision = "fp32"
    drain_s: Seconds = 10.0
    keep_warm_ms: Annotated[float, Meta(ge=1, le=3_600_000)] | None = None
    sinks: Sinks = Sinks()
    metrics: Metrics | None = None
    page: Page | None = None

    def bundle_of(self, camera: Camera) -> str:
        """Its own bundle or the line's; one of them is there."""
        name = camera.bundle or self.bundle
        assert name is not None
        return name

    def sinks_of(self, camera: Camera) -> Sinks:
        """Its own sinks or the line's."""
        return self.sinks if camera.sinks is None else camera.sinks


def read_config(path: Path) -> LineConfig:
    """A line's file. Raises Problems with all its faults."""
    try:
        raw = read_toml(path)
        found = [*faults(raw, LineConfig), *_contradictions(raw)]
    except Problems as exc:
        found = exc.problems
    if found:
        raise Problems([p if p.startswith(f"{path}: ") else f"{path}: {p}" for p in found])
    return msgspec.convert(raw, LineConfig)


def refusal(path: Path, problems: Problems) -> UsageError:
    """What ends a command after all problems were shown."""
    count = len(problems.problems)
    return UsageError(
        f"{path} has {count} {'error' if count == 1 else 'errors'}", remedy="correct it, then start again"
    )


def _contradictions(raw: dict[str, object]) -> Iterator[str]:
    """Faults of keys that are each right alone, in all tables that are."""
    tables = raw.get("camera")
    names: list[str] = []
    for index, table in enumerate(tables if isinstance(tables, list) else []):
        camera = _if_sound(table, Camera)
        names.append(camera.name if camera is not None else "")
        if camera is None:
            continue
        place = f"camera[{index}]"
        if camera.name in names[:index]:
            yield f"{place}.name: {camera.name!r} is also the name of camera[{names.index(camera.name)}]"
        if camera.bundle is None and "bundle" not in raw:
            yield f"{place}.bundle: is missing, and the line has no bundle of its own"
        yield from _contradictions_of_camera(camera, place)
    metrics, page = _if_sound(raw.get("metrics"), Metrics), _if_sound(raw.get("page"), Page)
    for name, server in (("metrics", metrics), ("page", page)):
        if server is not None and not _is_address(server.bind):
            yield f"{name}.bind: got {server.bind!r}, expected an address such as 127.0.0.1 or 0.0.0.0"
    if page is not None and metrics is not None and page.port == metrics.port:
        yield f"page.port: {page.port} is also the port of metrics"


def _if_sound(raw: object, table: type[_T]) -> _T | None:
    return None if raw is None or any(faults(raw, table)) else msgspec.convert(raw, table)


def _contradictions_of_camera(camera: Camera, place: str) -> Iterator[str]:
    if (camera.policy == "drop-late") != (camera.max_age_ms is not None):
        word = "is missing: drop-late needs it" if camera.max_age_ms is None else "is for the policy drop-late alone"
        yield f"{place}.max_age_ms: {word}"
    if camera.k_of_n is not None and camera.k_of_n[0] > camera.k_of_n[1]:
        yield f"{place}.k_of_n: got {list(camera.k_of_n)}, expected K not above N"
    if camera.tiles is not None and camera.tiles.overlap_px * 2 > min(camera.tiles.tile_wh):
        yield (
            f"{place}.tiles.overlap_px: got {camera.tiles.overlap_px}, expected at most half a side of the tile, "
            f"{min(camera.tiles.tile_wh) // 2}"
        )
    limits = camera.watch.limits()
    if limits.retry_s > limits.retry_cap_s:
        yield f"{place}.watch.retry_s: got {limits.retry_s:g}, expected at most retry_cap_s, {limits.retry_cap_s:g}"
    if limits.black_level >= limits.saturated_level:
        yield f"{place}.watch.black_level: got {limits.black_level}, expected less than saturated_level"
    for number, polygon in enumerate(camera.ignore):
        if _is_flat(polygon):
            yield f"{place}.ignore[{number}]: encloses nothing"


def _is_flat(polygon: tuple[Point, ...]) -> bool:
    """All points on one line."""
    (x0, y0), *others = polygon
    from_first = [(x - x0, y - y0) for x, y in others if (x, y) != (x0, y0)]
    return all(from_first[0][0] * dy == from_first[0][1] * dx for dx, dy in from_first) if from_first else True


def _is_address(bind: str) -> bool:
    try:
        ipaddress.ip_address(bind)
    except ValueError:
        return bind == "localhost"
    return True
