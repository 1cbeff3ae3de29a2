"""A line under supervision, as systemd does it: READY awaited, started again when it ends, restarted when asked.

``line_unit.py serve FILE SOCKET`` runs until its stdin ends; ``line_unit.py restart SOCKET`` is `systemctl restart`:
it returns 0 once the line is ready, else 1.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time

READY_S = 250.0
PAUSE_S = 0.3  # before a line that ended is started again


class Unit:
    """The line's process; None before its first start."""

    def __init__(self, line_file: str, socket_path: str):
        self._command = [sys.executable, "-m", "rdedge", "run", "--line", line_file]
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(f"{socket_path}.notify")
        self._environment = os.environ | {"NOTIFY_SOCKET": f"{socket_path}.notify"}
        self._pid_path = f"{socket_path}.pid"
        self._log = open(f"{socket_path}.log", "ab")  # noqa: SIM115 (as long as we live)
        self.process: subprocess.Popen[bytes] | None = None

    def restart(self) -> bool:
        self.stop()
        self.process = subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        with open(self._pid_path, "w") as f:
            f.write(str(self.process.pid))
        deadline_s = time.monotonic() + READY_S
        while time.monotonic() < deadline_s and self.process.poll() is None:
            if select.select([self._notify], [], [], 0.05)[0] and b"READY=1" in self._notify.recv(4096):
                return True
        return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def tick(self) -> None:
        while select.select([self._notify], [], [], 0)[0]:
            self._notify.recv(4096)
        if self.process is not None and self.process.poll() is not None:
            time.sleep(PAUSE_S)
            self.restart()


def serve(line_file: str, socket_path: str) -> None:
    unit = Unit(line_file, socket_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(socket_path)
        listener.listen()
        print("ready", flush=True)
        while True:
            readable = select.select([listener, sys.stdin], [], [], 0.1)[0]
            if sys.stdin in readable:
                unit.stop()
                return
            if listener in readable:
                connection, _ = listener.accept()
                with connection:
                    answer = b"ok" if unit.restart() else b"failed"
                    try:
                        connection.sendall(answer)
                    except OSError:  # the one who asked was killed
                        continue
            unit.tick()


def ask_restart(socket_path: str) -> int:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(socket_path)
        answer = connection.recv(100)
    if answer != b"ok":
        print("the line did not get ready")
    return 0 if answer == b"ok" else 1


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        sys.exit(ask_restart(sys.argv[2]))
