"""An emulated board under QEMU without a network card: commands through a virtio port, resets through its monitor."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from booted.root import Disks
from rdedge.errors import UsageError

_BOOT_S = 900.0
_MACHINE = ("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3072")
# An emulated processor that waits for others counts its cycles wrongly, so the board's clock is the HPET.
_APPEND = "root=/dev/vda rw console=ttyS0 panic=10 systemd.show_status=0 clocksource=hpet tsc=unstable"
# A machine that has others to serve lets it stand for seconds; that is no fault of the kernel's.
_APPEND += " rcupdate.rcu_cpu_stall_suppress=1 nowatchdog"


@dataclass(frozen=True, slots=True)
class Answer:
    """Of a command on the board: its exit code (124: it took too long) and what it printed."""

    code: int
    output: str


class Lines:
    """JSON objects, one a line, out of pieces of a stream; what is none, as a line cut by a reset, is passed over."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, piece: bytes) -> list[dict[str, object]]:
        """The objects that ``piece`` ends."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        found: list[dict[str, object]] = []
        for line in lines:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                found.append(value)
        return found


class Guest:
    """The board, on from the start; a context, at whose end it is switched off."""

    def __init__(self, disks: Disks, folder: Path):
        """``folder`` gets the serial console's log. Returns when the board has started. Raises UsageError."""
        self.console = folder / "console.log"
        self._lines = Lines()
        self._waiting: list[dict[str, object]] = []
        self._number = 0
        sockets = {name: folder / f"{name}.socket" for name in ("agent", "monitor")}
        for path in sockets.values():
            path.unlink(missing_ok=True)
        drives = [word for disk in (disks.root, disks.data) for word in ("-drive", f"file={disk},format=raw,if=virtio")]
        command = [
            "qemu-system-x86_64", *_MACHINE, "-nic", "none", "-display", "none", *drives,
            "-kernel", str(disks.kernel), "-initrd", str(disks.initrd), "-append", _APPEND,
            "-serial", f"file:{self.console}", "-device", "virtio-serial", "-device", "qemu-xhci",
            "-chardev", f"socket,id=agent,path={sockets['agent']},server=on,wait=off",
            "-device", "virtserialport,chardev=agent,name=board",
            "-qmp", f"unix:{sockets['monitor']},server=on,wait=off",
        ]  # fmt: skip
        self._process = subprocess.Popen(command)
        try:
            self._agent, self._monitor = (_connected(path) for path in sockets.values())
            self._order("qmp_capabilities")
            self.boot = self._await_boot()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._agent.close()
        self._monitor.close()

    def run(self, command: str, timeout_s: float = 120.0) -> Answer:
        """By the board's bash, as root. Raises UsageError if the board no longer answers."""
        self._number += 1
        request = {"id": self._number, "command": command, "timeout_s": timeout_s}
        self._agent.sendall(json.dumps(request).encode() + b"\n")
        reply = self._receive(lambda line: line.get("id") == self._number, timeout_s + 120.0)
        code = reply["code"]
        assert isinstance(code, int)
        return Answer(code, str(reply["output"]).rstrip("\n"))

    def until(self, command: str, timeout_s: float) -> tuple[bool, float, str]:
        """Whether a command ended with 0 within the time, tried each two seconds; after how long; what it said last."""
        started_s = time.monotonic()
        while True:
            answer = self.run(command)
            passed_s = time.monotonic() - started_s
            if answer.code == 0 or passed_s > timeout_s:
                return answer.code == 0, passed_s, answer.output
            time.sleep(2.0)  # asking costs the emulated processor more than it seems

    def reboot(self) -> None:
        """As an operator does it; returns when the board has started again. Raises UsageError."""
        self.run("systemd-run --quiet --on-active=1 systemctl reboot")
        self.boot = self._await_boot()

    def cut_power(self) -> None:
        """Resets the machine at once: what the board's memory had not yet given to its disks is gone."""
        self._order("system_reset")
        self.boot = self._await_boot()

    def _await_boot(self) -> str:
        return str(self._receive(lambda line: "boot" in line, _BOOT_S)["boot"])

    def _receive(self, is_wanted: Callable[[dict[str, object]], bool], timeout_s: float) -> dict[str, object]:
        deadline_s = time.monotonic() + timeout_s
        while True:
            for line in self._waiting:
                if is_wanted(line):
                    self._waiting.clear()
                    return line
            self._waiting.clear()
            self._agent.settimeout(max(0.1, deadline_s - time.monotonic()))
            try:
                piece = self._agent.recv(65536)
            except TimeoutError:
                piece = b""
            if not piece:
                tail = self.console.read_text(errors="replace")[-1500:]
                raise UsageError(f"the board does not answer; its console: {tail}", remedy=f"see {self.console}")
            self._waiting = self._lines.take(piece)

    def _order(self, name: str) -> None:
        self._monitor.sendall(json.dumps({"execute": name}).encode() + b"\n")
        text = b""
        while b'"return"' not in text:
            text += self._monitor.recv(65536)


def _connected(path: Path) -> socket.socket:
    """To a socket that QEMU makes at its start."""
    deadline_s = time.monotonic() + 30.0
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
            return connection
        except OSError:
            connection.close()
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)
