"""The proof on a booted board: what its pure parts make of verdicts, cut lines and failures. The rest needs QEMU."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import booted_board
from booted import agent
from booted.checks import WATCH_PIN
from booted.guest import Answer, Lines
from booted.line import REJECT_PIN, TOML, Failed, Line, parse
from booted_board import CHECKS, Outcome, render, run_checks
from rdedge.errors import UsageError
from rdedge.line.config import read_config


class Said:
    """A board that answers the same to everything."""

    def __init__(self, code: int, output: str):
        self.answer = Answer(code, output)
        self.asked: list[str] = []

    def run(self, command: str, timeout_s: float = 120.0) -> Answer:
        self.asked.append(command)
        return self.answer

    def until(self, command: str, timeout_s: float) -> tuple[bool, float, str]:
        return self.answer.code == 0, timeout_s, self.answer.output

    def reboot(self) -> None: ...

    def cut_power(self) -> None: ...


def test_lines_come_whole_out_of_pieces_and_a_cut_one_is_passed_over() -> None:
    lines = Lines()
    assert lines.take(b'{"id": 1, "ou') == []
    assert lines.take(b'tput": "a"}\n{"id": 2, "out') == [{"id": 1, "output": "a"}]
    assert lines.take(b'\n{"boot": "x"}\n[1]\n') == [{"boot": "x"}]  # the board was reset within an answer


def test_verdicts_are_told_from_what_is_none() -> None:
    whole, other = json.dumps({"score": 1.0}), json.dumps({"kind": "disk-fault"})
    parsed = parse(f"{whole}\n{other}\n{whole}\n{whole[:5]}")
    assert len(parsed.records) == 2 and parsed.broken == [other, whole[:5]]
    assert parse("") == parse("\n"[:0]) and parse(f"{whole}\n").broken == []


def test_a_broken_line_and_a_command_that_fails_are_failures() -> None:
    with pytest.raises(Failed, match=r"1 lines of .* are no verdicts"):
        Line(Said(0, '{"score": 1.0}\n{"sco')).records()
    with pytest.raises(Failed, match=r"`false` ended with 1: no"):
        Line(Said(1, "no")).do("false")
    with pytest.raises(Failed, match="ready: not after 5 s"):
        Line(Said(1, "")).wait("false", "ready", 5.0)


def test_one_failure_stops_no_other_check_and_is_told() -> None:
    def good(line: Line) -> str:
        return line.do("ls")

    def bad(line: Line) -> str:
        raise Failed("a|b")

    outcomes = run_checks(Line(Said(0, "seen")), [("first", bad), ("second", good)])
    assert [(o.name, o.passed, o.seen) for o in outcomes] == [("first", False, "a|b"), ("second", True, "seen")]
    table = render(["#1 SMP"], outcomes).splitlines()
    assert table[0].startswith("1 of 2 checks passed.")
    assert table[-2:] == ["| first | **fail** | a\\|b |", "| second | pass | seen |"]


def test_a_board_that_no_longer_answers_ends_all() -> None:
    def dead(line: Line) -> str:
        raise UsageError("the board does not answer", remedy="see its console")

    outcomes = run_checks(Line(Said(0, "")), [("first", dead), ("second", lambda line: "seen")])
    assert [(o.name, o.passed) for o in outcomes] == [("first", False)]


def test_every_check_is_named_once() -> None:
    names = [name for name, _ in CHECKS]
    assert len(set(names)) == len(names) and len({check for _, check in CHECKS}) == len(names)


@pytest.mark.parametrize(("passed", "code"), [([True, True], 0), ([True, False], 1), ([], 1)])
def test_the_exit_code_says_whether_all_passed(monkeypatch: pytest.MonkeyPatch, passed: list[bool], code: int) -> None:
    class Off(Said):
        def __enter__(self) -> Off:
            return self

        def __exit__(self, *error: object) -> None: ...

    outcomes = [Outcome(name=str(i), passed=p, seen="", seconds=0.0) for i, p in enumerate(passed)]
    written: list[Any] = []
    for name, value in {
        "_require": lambda *tools: None,
        "_wheels": lambda work: work,
        "_bundle": lambda work: work,
        "build_driver": lambda: Path(),
        "make_disks": lambda *parts: None,
        "Guest": lambda *parts: Off(0, "Linux"),
        "run_checks": lambda line, checks: outcomes,
        "write_results": lambda *parts: written.append(parts),
    }.items():
        monkeypatch.setattr(booted_board, name, value)
    monkeypatch.setattr(sys, "argv", ["booted_board.py"])
    with pytest.raises(SystemExit) as ended:
        booted_board.main()
    assert ended.value.code == code and len(written) == 1


def test_the_lines_file_is_one_that_the_line_reads(tmp_path: Path) -> None:
    (tmp_path / "press.toml").write_text(TOML)
    config = read_config(tmp_path / "press.toml")
    assert config.sinks.gpio is not None and config.sinks.gpio.line == REJECT_PIN


def test_the_agent_answers_with_code_output_and_its_patience() -> None:
    assert agent.answer({"id": 1, "command": "echo a; echo b >&2; exit 3", "timeout_s": 30.0}) == {
        "id": 1,
        "code": 3,
        "output": "a\nb\n",
    }
    assert agent.answer({"id": 2, "command": "echo a; exec sleep 30", "timeout_s": 0.5})["code"] == 124


def test_pulses_are_counted_on_rising_edges(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the program that the board runs, with levels in place of the pin's file and a clock of its own."""
    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr("time.monotonic", lambda: now_s)
    monkeypatch.setattr("time.sleep", sleep)
    levels = iter("0110100111")
    program = WATCH_PIN.format(steps=[(None, 0.1), (None, 0.3)], pin="pin", counted='value == "1" and last == "0"')
    exec(program, {"open": lambda path: io.StringIO(next(levels, "0") + "\n")})
    assert capsys.readouterr().out == "3\n"
