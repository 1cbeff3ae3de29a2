"""Lanes on the fake engine, and sources and sinks that do what a test asks of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rdedge.backends import Backend
from rdedge.backends.fake import FakeBackend
from rdedge.bundle import open_bundle
from rdedge.errors import ImageError, RdedgeError, SinkError
from rdedge.events import Event
from rdedge.frames import Frame
from rdedge.inspector import Inspection, Inspector, Rules
from rdedge.line.lane import Lane, Settings
from rdedge.sinks import Sink
from rdedge.sources.base import SourceInfo
from rdedge.stream import Policy, Stream

WAIT_S = 60.0
PARTS = 400


class ScriptedSource:
    """Gives the frames of a list of part levels (0..255), waits where it is told to, then ends or fails."""

    def __init__(self, levels: list[int], *, size_hw: tuple[int, int] = (48, 64), error: RdedgeError | None = None):
        self.name = "scripted"
        self.skipped: list[ImageError] = []
        self.info = SourceInfo()
        self.part_ids: list[str | None] = [None] * len(levels)
        self.interval_s = 0.0
        self.gates: dict[int, threading.Event] = {}  # before the frame of this number
        self.bad: set[int] = set()  # frames too small for a region of interest
        self.closed = threading.Event()
        self._levels, self._size_hw, self._error = levels, size_hw, error

    def __iter__(self) -> Iterator[Frame]:
        due_s = time.monotonic()
        for index, level in enumerate(self._levels):
            if index in self.gates:
                self.gates[index].wait(WAIT_S)
            if self.interval_s:
                due_s += self.interval_s
                self.closed.wait(max(0.0, due_s - time.monotonic()))
            if self.closed.is_set():
                return
            size_hw = (16, 16) if index in self.bad else self._size_hw
            image: NDArray[np.uint8] = np.full((*size_hw, 3), level, np.uint8)
            captured_at_s = time.monotonic()
            part_id = self.part_ids[index]
            yield Frame(image_bgr_u8=image, index=index, captured_at_s=captured_at_s, source=self.name, part_id=part_id)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self.closed.set()
        for gate in self.gates.values():
            gate.set()


class ListSink:
    """Keeps what it is given; fails for the frames it is told to."""

    def __init__(self) -> None:
        self.got: list[Inspection] = []
        self.fails_at: set[int] = set()
        self.is_closed = False

    @property
    def indices(self) -> list[int]:
        return [inspection.frame.index for inspection in self.got]

    def write(self, inspection: Inspection) -> None:
        if inspection.frame.index in self.fails_at:
            raise SinkError(f"no space for {inspection.frame.index}", remedy="make some")
        self.got.append(inspection)

    def close(self) -> None:
        self.is_closed = True


class WatchedBackend(FakeBackend):
    """Notes the thread that uses it and what it does; ``pause_s`` makes it slow."""

    def __init__(self, bundle: Path):
        super().__init__(open_bundle(bundle).contract.graph)
        self.threads: set[int] = set()
        self.pause_s = 0.0

    def infer(self, frame_u8):  # type: ignore[no-untyped-def]
        self.threads.add(threading.get_ident())
        if self.pause_s:
            time.sleep(self.pause_s)
        return super().infer(frame_u8)


MakeLane = Callable[..., Lane]


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def engine(bundle: Path) -> WatchedBackend:
    return WatchedBackend(bundle)


@pytest.fixture
def inspector(bundle: Path, engine: Backend) -> Inspector:
    return Inspector(open_bundle(bundle), engine, "fp32")


@pytest.fixture
def make_lane(inspector: Inspector, events: list[Event]) -> MakeLane:
    """``make_lane(source, name=…, policy=…, sinks=…, rules=…, k_of_n=…)`` around the shared engine."""

    def make(
        source: ScriptedSource,
        *,
        name: str = "top",
        policy: Policy = "every",
        queue_size: int = 4,
        sinks: tuple[Sink, ...] = (),
        actuators: tuple[Sink, ...] = (),
        rules: Rules | None = None,
        k_of_n: tuple[int, int] | None = None,
        forgives: bool = True,
    ) -> Lane:
        stream = Stream(source, policy=policy, queue_size=queue_size, camera=name, on_event=events.append)
        settings = Settings(rules=rules or Rules(), k_of_n=k_of_n, sinks=sinks, actuators=actuators)
        return Lane(name, source, stream, inspector, settings, on_event=events.append, forgives=forgives)

    return make


@pytest.fixture
def scripted() -> type[ScriptedSource]:
    return ScriptedSource


@pytest.fixture
def list_sink() -> type[ListSink]:
    return ListSink


@pytest.fixture
def site(tmp_path: Path, bundle: Path) -> Path:
    """A bundle, and a folder of 400 parts of which every tenth is dark in its middle."""
    many = tmp_path / "many"
    many.mkdir()
    good = np.full((48, 64, 3), 204, np.uint8)
    bad = good.copy()
    bad[20:28, 30:38] = 51
    cv2.imwrite(str(tmp_path / "good.png"), good)
    cv2.imwrite(str(tmp_path / "bad.png"), bad)
    for index in range(PARTS):
        os.link(tmp_path / ("bad.png" if index % 10 == 0 else "good.png"), many / f"{index:04d}.png")
    return tmp_path
