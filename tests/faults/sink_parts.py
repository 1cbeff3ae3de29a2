"""What the tests of sinks share: inspections with a known verdict, a real MQTT broker on loopback, a tiny disk."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit

import numpy as np
from free_port import free_port

import rdedge.sinks.held
from rdedge.cli import main
from rdedge.frames import Frame
from rdedge.inspector import Inspection, StageTimes
from rdedge.judge import judge

TIMEOUT_S = 60.0
THRESHOLD = 0.5


def inspection(
    index: int = 3,
    *,
    is_anomalous: bool = True,
    source: str = "parts/b.png",
    size_hw: tuple[int, int] = (480, 640),
    part_id: str | None = None,
) -> Inspection:
    """A grey part; score and peak are 0.75 of a threshold of 0.5 with one region of 8 x 8 map pixels, or 0.25."""
    height, width = size_hw
    anomaly_map = np.zeros((48, 64), np.float32)
    anomaly_map[24:32, 16:24] = 0.75 if is_anomalous else 0.25
    roi_xywh = (0, 0, width, height)
    return Inspection(
        frame=Frame(
            image_bgr_u8=np.full((*size_hw, 3), 128, np.uint8),
            index=index,
            captured_at_s=time.monotonic(),
            source=source,
            part_id=part_id,
        ),
        verdict=judge(
            anomaly_map,
            float(anomaly_map.max()),
            image_threshold=THRESHOLD,
            pixel_threshold=0.3,
            roi_xywh=roi_xywh,
        ),
        times=StageTimes(preprocess_ms=1.00049, infer_ms=20.0, judge_ms=0.5),
    )


class Clock:
    """A sink's clock in the place of the module ``time``; goes on by itself, and can be put forward."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


def wait_until(is_so: Callable[[], bool]) -> None:
    """Fails if it never is."""
    until_s = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < until_s, "in vain"
        time.sleep(0.01)


def run_line(path: str) -> None:
    """`rdedge run` in a process of its own that is to be killed; it waits as long as the disk may take, so that what
    one sink has written the next has too.
    """
    rdedge.sinks.held._PATIENCE_S = TIMEOUT_S
    sys.exit(main(["run", "--line", path]))


class Broker:
    """A real mosquitto that remembers its subscribers over a restart, so that what it acknowledged reaches them."""

    def __init__(self, folder: Path, *, extra: str = ""):
        program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        assert program is not None, "apt-get install mosquitto"
        self.port = free_port()
        self._command = [program, "-c", str(folder / "mosquitto.conf")]
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "mosquitto.conf").write_text(
            f"listener {self.port} 127.0.0.1\npersistence true\npersistence_location {folder}/\n"
            f"max_queued_messages 0\nuser root\n{extra or 'allow_anonymous true'}\n"
        )

    def start(self) -> None:
        """Returns when it listens."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until_s = time.monotonic() + TIMEOUT_S
        while True:
            assert self._process.poll() is None, "mosquitto ended"
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < until_s
                time.sleep(0.02)

    def stop(self) -> None:
        """Ends it in order: it saves what it acknowledged."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(TIMEOUT_S)
            self._process = None

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid


class SmallDisk:
    """A disk of its own size, to fill and to free; where nothing may be mounted, a limit on files in its place."""

    def __init__(self, folder: Path, size_bytes: int):
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(folder)]
        self.is_mounted = subprocess.run(command, capture_output=True).returncode == 0
        self._folder = folder
        self._limits = getrlimit(RLIMIT_FSIZE)

    def fill(self) -> None:
        """No more byte fits."""
        if not self.is_mounted:
            setrlimit(RLIMIT_FSIZE, (0, self._limits[1]))
            return
        with (self._folder / "filler").open("ab", buffering=0) as filler, suppress(OSError):
            while filler.write(b"x" * 4096):
                pass

    def free(self) -> None:
        """Takes back what ``fill`` did."""
        (self._folder / "filler").unlink(missing_ok=True)
        setrlimit(RLIMIT_FSIZE, self._limits)

    def remove(self) -> None:
        """With all that is on it."""
        self.free()
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self._folder)], check=True)
