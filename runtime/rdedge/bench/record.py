"""The file of a measurement: everything that a number needs beside it, and each frame's times."""

from __future__ import annotations

from pathlib import Path

import msgspec

from rdedge.atomic import write_bytes
from rdedge.errors import UsageError
from rdedge.strict import Strict

# The stages of a frame in the order it goes through them. ``device`` is part of ``engine``.
CAPTURE, QUEUE, PREPROCESS, ENGINE, DEVICE, JUDGE, SINKS = (
    "capture",
    "queue",
    "preprocess",
    "engine",
    "device",
    "judge",
    "sinks",
)
WHOLE = "capture to verdict"
STAGES = (CAPTURE, QUEUE, PREPROCESS, ENGINE, DEVICE, JUDGE, SINKS, WHOLE)
EXPLAINED = {
    CAPTURE: "getting the frame: reading and decoding a file, waiting for a camera, copying a picture of its own",
    QUEUE: "from the frame's capture to the begin of its turn",
    PREPROCESS: "cut, shrunk, reordered",
    ENGINE: "the engine's call by the host's clock: upload, inference, download",
    DEVICE: "of it, by the device's events",
    JUDGE: "threshold, map to regions",
    SINKS: "verdict line to disk, picture of a reject",
    WHOLE: "what the line feels: from the frame's capture until its verdict stands; sinks come after",
}


class Board(Strict, frozen=True):
    """A Jetson during one phase, from tegrastats. ``None``: the board does not say.

    ``gpu_mhz`` and ``cpu_mhz``: lowest, median, highest. ``temperatures_c``: the highest of each sensor.
    ``energy_mj``: of one verdict: the whole module's mean power times the phase's time, over the verdicts.
    ``timeline``: seconds since the phase began, GPU clock in MHz, hottest sensor in C, power in W.
    """

    samples: int
    gpu_mhz: tuple[float, float, float] | None
    cpu_mhz: tuple[float, float, float] | None
    temperatures_c: dict[str, float]
    ram_mb: float | None
    power_w: float | None
    power_rails: tuple[str, ...]
    energy_mj: float | None
    throttling: str
    timeline: list[tuple[float, float | None, float | None, float | None]]


class Phase(Strict, frozen=True):
    """One way of offering frames. ``times_ms``: by stage, one number a frame, in order; warm-up frames apart.

    ``at_s``: each measured frame's capture, since the phase began. ``seconds``: from the first measured capture to the
    last verdict. ``offered`` = ``judged`` + ``dropped``, warm-up included.
    """

    name: str
    times_ms: dict[str, list[float]]
    warm_up_ms: dict[str, list[float]]
    at_s: list[float]
    seconds: float
    offered: int
    judged: int
    dropped: int
    rejected: int
    lost: int  # by the camera, its driver or the network, before they reached us
    board: Board | None


class Memory(Strict, frozen=True):
    """Peak resident memory of this process and of a fresh `rdedge run`, and what the engine holds on the device."""

    bench_peak_mb: float
    run_peak_mb: float | None
    device_mb: float | None


class Record(Strict, frozen=True):
    """A whole measurement. ``subject``: what was measured; two records with the same one may be compared."""

    schema_version: int
    date_utc: str
    command: str
    subject: dict[str, str]
    versions: dict[str, str]
    notes: tuple[str, ...]
    phases: tuple[Phase, ...]
    device_parts_ms: dict[str, list[float]]  # upload, inference, download by the device's events
    cold_start_ms: list[float]
    memory: Memory


SCHEMA_VERSION = 1


def write_record(path: Path, record: Record) -> None:
    """Raises OSError."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")


def read_record(path: Path) -> Record:
    """Raises UsageError for a file that cannot be read or is none of ours."""
    remedy = "name a file that `rdedge bench --json` wrote"
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read ({exc.strerror})", remedy=remedy) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path}: is no measurement ({exc})", remedy=remedy) from exc
    if record.schema_version != SCHEMA_VERSION:
        raise UsageError(
            f"{path}: is of schema {record.schema_version}, this rdedge reads {SCHEMA_VERSION}", remedy="measure again"
        )
    for phase in record.phases:
        counts = {len(times) for times in phase.times_ms.values()} | {len(phase.at_s)}
        if len(counts) != 1 or WHOLE not in phase.times_ms:
            raise UsageError(f"{path}: phase {phase.name} is incomplete", remedy="measure again")
    return record
