"""The line press of an emulated board, as its operator and the machine around it see it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any, Protocol

from booted.guest import Answer

UNIT, ENGINE = "rdedge@press", "rdedge-engine@press"
FILE = "/etc/rdedge/press.toml"
DATA = "/var/lib/rdedge"
VERDICTS = f"{DATA}/results/top/verdicts.jsonl"
PINS = "/sys/devices/platform/gpio-sim.0/gpiochip0/sim_gpio"
REJECT_PIN, HEARTBEAT_PIN = 3, 5
PLENTY_S = 300.0  # of emulated seconds' real ones, on a machine that has others to serve
TOML = f"""bundle = "{DATA}/bundle"
out = "{DATA}/results"
drain_s = 5.0
[metrics]
[page]
[sinks.jsonl]
[sinks.pictures]
max_mb = 20
keep_rejects = 10
[sinks.gpio]
chip = "/dev/gpiochip0"
line = {REJECT_PIN}
pulse_s = 0.2
heartbeat_line = {HEARTBEAT_PIN}
on = "anomalous"
[[camera]]
name = "top"
uri = "v4l2:///dev/video0?width=320&height=180&fps=2"
policy = "latest"
threshold = 1000000.0
"""


class Failed(Exception):
    """A check found something else than it expected; says what."""


class Board(Protocol):
    """What checks ask of a board; see Guest."""

    def run(self, command: str, timeout_s: float = ...) -> Answer: ...
    def until(self, command: str, timeout_s: float) -> tuple[bool, float, str]: ...
    def reboot(self) -> None: ...
    def cut_power(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Parsed:
    """Verdicts of a file, and its lines that are none; a last line without its end counts as one of these."""

    records: list[dict[str, Any]]
    broken: list[str]


def parse(text: str) -> Parsed:
    """``text``: of a verdicts.jsonl."""
    records: list[dict[str, Any]] = []
    broken: list[str] = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
            records.append(value) if isinstance(value, dict) and "score" in value else broken.append(line)
        except ValueError:
            broken.append(line)
    return Parsed(records, broken)


class Line:
    """Commands of one board. Every method raises Failed where the board does not do as it should."""

    def __init__(self, board: Board):
        self.board = board

    def do(self, command: str, timeout_s: float = 120.0) -> str:
        """What a command prints that must end with 0."""
        answer = self.board.run(command, timeout_s)
        if answer.code != 0:
            raise Failed(f"`{command[:200]}` ended with {answer.code}: {answer.output[-600:]}")
        return answer.output

    def wait(self, command: str, what: str, timeout_s: float = PLENTY_S) -> float:
        """Seconds until a command ended with 0."""
        is_done, passed_s, output = self.board.until(command, timeout_s)
        if not is_done:
            state = self.board.run(f"systemctl status --no-pager {UNIT}; {self.log_command()} | tail -n 5").output
            raise Failed(f"{what}: not after {passed_s:.0f} s; {output[-300:]} {state[-1500:]}")
        return passed_s

    def show(self, name: str, unit: str = UNIT) -> str:
        """A property of a unit, as systemd has it."""
        return self.do(f"systemctl show --value -p {name} {unit}")

    def is_active(self) -> str:
        """A command that ends with 0 once the line has told systemd that it is ready."""
        return f"systemctl is-active --quiet {UNIT}"

    def state(self) -> tuple[str, str]:
        """Its process and how often it was restarted: neither changes while all goes well."""
        return self.show("MainPID"), self.show("NRestarts")

    def log_command(self) -> str:
        """The guide's own words."""
        return f"journalctl --no-pager -o cat --namespace=rdedge -u {UNIT} -u {ENGINE}"

    def log_since(self, mark: str) -> list[str]:
        """What the line said after ``mark``."""
        return [line for line in self.do(f"{self.log_command()} --after-cursor='{mark}'").splitlines() if line]

    def mark(self) -> str:
        """This moment in the line's log."""
        text = self.do("journalctl --no-pager -o cat --namespace=rdedge -n 1 --show-cursor --quiet")
        return text.rsplit("-- cursor: ", 1)[1].strip()

    def records(self) -> list[dict[str, Any]]:
        """All verdicts in the file. Raises Failed where a line is none, but for a last one under way."""
        parsed = parse(self.do(f"cat {VERDICTS}"))
        if parsed.broken:
            raise Failed(f"{len(parsed.broken)} lines of {VERDICTS} are no verdicts: {parsed.broken[0][:200]!r}")
        return parsed.records

    def wait_for_verdicts(self, count: int, timeout_s: float = PLENTY_S) -> tuple[list[dict[str, Any]], float]:
        """So many new ones, and after how long they were there."""
        before = int(self.do(f"cat {VERDICTS} 2>/dev/null | wc -l"))
        wanted = f'[ "$(cat {VERDICTS} 2>/dev/null | wc -l)" -ge {before + count} ]'
        passed_s = self.wait(wanted, f"{count} new verdicts", timeout_s)
        return self.records()[before:], passed_s

    def edit(self, old: str, new: str) -> None:
        """One place in the line's file."""
        self.do(f"grep -qF '{old}' {FILE} && sed -i 's|{old}|{new}|' {FILE}")

    def inside(self, python: str) -> str:
        """What a program prints behind the line's walls: in its control group and its view of files, as root."""
        pid = self.show("MainPID")
        enter = f"echo $$ >/sys/fs/cgroup$(cut -d: -f3 /proc/{pid}/cgroup)/cgroup.procs"
        return self.do(f"{enter} && nsenter -t {pid} -m /usr/bin/python3 - <<'END'\n{python}\nEND")

    def health(self) -> dict[str, Any]:
        """What /healthz answers, with 200 or 503."""
        program = (
            "import urllib.request as u, urllib.error as e\n"
            "try: r = u.urlopen('http://127.0.0.1:9188/healthz', timeout=30)\nexcept e.HTTPError as x: r = x\n"
            "print(r.read().decode())"
        )
        value = json.loads(self.do(f"python3 - <<'END'\n{program}\nEND"))
        assert isinstance(value, dict)
        return value


def expect(is_so: bool, what: str) -> None:
    """Raises Failed."""
    if not is_so:
        raise Failed(what)


def pause(seconds: float) -> None:
    """Lets the board go on; nothing is waited for but time."""
    time.sleep(seconds)
