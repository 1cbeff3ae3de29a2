"""A line as a service: systemd is told what it is doing, and nothing keeps it from ending."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

CAMERA = '[[camera]]\nname = "top"\nuri = "folder:many"\npolicy = "every"\n'
LINE = f'out = "out"\nbundle = "bundle"\nbackend = "fake"\n{CAMERA}'


def test_systemd_hears_of_start_life_and_stop(site: Path) -> None:
    for index in range(400, 8000):
        os.link(site / "good.png", site / "many" / f"{index:04d}.png")
    (site / "line.toml").write_text(LINE)
    command = [sys.executable, "-m", "rdedge", "run", "--line", str(site / "line.toml")]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(site / "notify"))
        manager.settimeout(60.0)
        told = {"NOTIFY_SOCKET": str(site / "notify"), "WATCHDOG_USEC": "1000000"}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | told
        ) as process:
            assert manager.recv(100) == f"READY=1\nMAINPID={process.pid}".encode()
            assert manager.recv(100) == b"WATCHDOG=1"
            process.send_signal(signal.SIGTERM)
            while (message := manager.recv(100)) == b"WATCHDOG=1":
                pass
            assert message == b"STOPPING=1"
            out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"") and b"+ 0 dropped + 0 skipped" in out


HANGING = """
import sys, time
from rdedge.line.service import serve

def close_sinks():
    print("closing", flush=True)
    time.sleep(120)

serve([], drain_s=float(sys.argv[1]), on_shown=lambda *_: None, close_sinks=close_sinks)
"""


@pytest.mark.parametrize(
    ("drain_s", "signals", "code", "says"),
    [
        (60.0, [signal.SIGTERM, signal.SIGTERM], 143, ""),
        (60.0, [signal.SIGINT, signal.SIGINT], 130, ""),
        (0.1, [signal.SIGTERM], 3, "rdedge: error: the line did not stop in time; see drain_s\n"),
    ],
    ids=["a second SIGTERM", "a second interrupt", "time is up"],
)
def test_a_sink_that_hangs_does_not_keep_the_process(
    tmp_path: Path, drain_s: float, signals: list[signal.Signals], code: int, says: str
) -> None:
    command = [sys.executable, "-c", HANGING, str(drain_s)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60.0)
        told = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | told
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == "closing\n"
            assert manager.recv(100).startswith(b"READY=1") and manager.recv(100) == b"STOPPING=1"
            process.send_signal(signals[0])
            assert manager.recv(100) == b"STOPPING=1", "the first is known: a second cannot become one with it"
            for number in signals[1:]:
                process.send_signal(number)
            _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, says)
