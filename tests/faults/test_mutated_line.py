"""A line's file damaged in a thousand ways: told what is wrong or taken, never a crash, never a wait."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from types import FrameType

import pytest

from rdedge.line.checked import Problems
from rdedge.line.config import LineConfig, read_config
from rdedge.line.plan import make_plan

MUTATIONS = 1000
LIMIT_S = 20  # for one file that takes milliseconds
EXAMPLE = Path(__file__).parents[2] / "jetson" / "line.example.toml"
PIECES = [
    "[[camera]]", "[camera]", "[sinks]", "[sinks.mqtt]", "=", "nan", "inf", "-1", "1e400", "''", '"""', "'''", "[", "]",
    "{", "}", "[[[", "9" * 400, "2026-11-22T10:00:00Z",
    "true", "\\u0000", '"\\u0000"', "\x00", "\ud800", "é", "\n", "\t",
    "0x7fffffffffffffff", "99999999999999999999", "camera.name = 1", "out.out = 2", "= =", "#", "\r", "a.b.c = 1",
]  # fmt: skip


def uncommented(text: str) -> str:
    """Also what the example only offers."""
    return "\n".join(
        line.removeprefix("# ") if " = " in line or line.startswith("# [") else line for line in text.splitlines()
    )


def mutated(text: str, rng: random.Random) -> bytes:
    """One to four damages: bytes changed, lost or doubled, lines moved, pieces of TOML where they do not belong."""
    for _ in range(rng.randint(1, 4)):
        lines = text.split("\n")
        place, length = rng.randrange(len(text) + 1), rng.randint(1, 40)
        kind = rng.randrange(7)
        if kind == 0:
            text = text[:place] + text[place + length :]
        elif kind == 1:
            text = text[:place] + text[place : place + length] + text[place:]
        elif kind == 2:
            text = text[:place] + chr(rng.randrange(0x3000)) + text[place + 1 :]
        elif kind == 3:
            text = text[:place] + rng.choice(PIECES) + text[place:]
        elif kind == 4:
            rng.shuffle(lines)
            text = "\n".join(lines)
        elif kind == 5:
            index = rng.randrange(len(lines))
            key, _, _ = lines[index].partition("=")
            lines[index] = f"{key}= {rng.choice(PIECES)}"
            text = "\n".join(lines)
        else:
            text = text[:place]
    data = bytearray(text.encode(errors="surrogatepass"))
    if data and rng.random() < 0.2:
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def hangs(number: int, frame: FrameType | None) -> None:
    raise AssertionError(f"took more than {LIMIT_S} s")


@pytest.mark.parametrize("block", range(10))
def test_a_damaged_file_is_refused_or_taken(tmp_path: Path, block: int) -> None:
    path = tmp_path / "line.toml"
    whole = EXAMPLE.read_text(encoding="utf-8")
    taken = told = 0
    before = signal.signal(signal.SIGALRM, hangs)
    try:
        for index in range(MUTATIONS // 10):
            rng = random.Random(1000 * block + index)
            path.write_bytes(mutated(uncommented(whole) if index % 2 else whole, rng))
            signal.alarm(LIMIT_S)
            try:
                assert isinstance(read_config(path), LineConfig)
                taken += 1
                make_plan(path)
            except Problems as exc:
                assert exc.problems and all(problem.startswith(f"{path}: ") for problem in exc.problems)
                told += 1
            signal.alarm(0)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert taken > 0 and told == MUTATIONS // 10, "no bundle is there, so every plan is refused"
