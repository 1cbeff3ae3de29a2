"""An event is a line somebody reads."""

from __future__ import annotations

import sys
import time
from datetime import timezone

import pytest

from rdedge.events import Event, tell


def test_an_event_knows_its_moment_on_both_clocks() -> None:
    before_s = time.monotonic()
    event = Event(kind="silent", severity="error", text="no frame", camera="left")
    assert before_s <= event.at_s <= time.monotonic()
    assert event.at_utc.tzinfo is timezone.utc


def test_telling_is_one_printable_line_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    tell(Event(kind="silent", severity="error", text="no\nframe", camera="left"))
    tell(Event(kind="drift", severity="warning", text="scores rise", camera=""))
    assert capfd.readouterr() == ("", "rdedge: error: left: no\\nframe\nrdedge: warning: scores rise\n")


def test_a_process_without_stderr_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    tell(Event(kind="silent", severity="error", text="no frame", camera="left"))
