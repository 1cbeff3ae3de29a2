"""K of N: rejected by K frames, good only when enough were judged, decided once."""

from __future__ import annotations

import pytest

from rdedge.line.debounce import KOfN, PartVerdict


def states(rule: KOfN, part_id: str | None, frames: str) -> list[tuple[bool, bool]]:
    """(is_reject, is_decided) after each frame: x is anomalous."""
    parts = [rule.add(part_id, frame == "x")[0] for frame in frames]
    return [(part.is_reject, part.is_decided) for part in parts]


OPEN, GOOD, REJECT, STILL_REJECT, STILL_GOOD = (
    (False, False),
    (False, True),
    (True, True),
    (True, False),
    (False, False),
)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ("...", [OPEN, OPEN, GOOD]),
        (".x.", [OPEN, OPEN, GOOD]),
        ("xx.", [OPEN, REJECT, STILL_REJECT]),
        (".xx", [OPEN, OPEN, REJECT]),
        ("...x", [OPEN, OPEN, GOOD, STILL_GOOD]),
        ("..x.x", [OPEN, OPEN, GOOD, STILL_GOOD, STILL_REJECT]),
    ],
)
def test_a_part_is_decided_by_one_frame(frames: str, expected: list[tuple[bool, bool]]) -> None:
    assert states(KOfN(2, 3), "p1", frames) == expected


def test_parts_are_counted_apart() -> None:
    rule = KOfN(2, 2)
    assert states(rule, "p1", ".x") == [OPEN, GOOD]
    part, before = rule.add("p2", True)
    assert before is None and (part.part_id, part.anomalous, part.frames) == ("p2", 1, 1)


@pytest.mark.parametrize(
    ("k", "n", "frames", "is_reject"),
    [(1, 3, "..", True), (2, 3, "..", False), (2, 3, ".x", True), (2, 3, ".", True), (3, 3, "x.", False)],
)
def test_a_part_that_ends_short_is_good_only_if_the_lost_frames_could_not_matter(
    k: int, n: int, frames: str, is_reject: bool
) -> None:
    rule = KOfN(k, n)
    states(rule, "p1", frames)
    _, before = rule.add("p2", False)
    assert before == PartVerdict(
        part_id="p1",
        is_reject=is_reject,
        anomalous=frames.count("x"),
        frames=len(frames),
        of=n,
        is_decided=True,
    )
    assert rule.end() is not None, "p2 had one frame"
    assert rule.end() is None


def test_a_part_that_was_decided_ends_without_a_word() -> None:
    rule = KOfN(1, 2)
    states(rule, "p1", "x")
    assert rule.add("p2", False)[1] is None
    rule.add("p2", False)
    assert rule.end() is None


def test_a_free_camera_is_judged_by_its_last_n_frames() -> None:
    rule = KOfN(2, 3)
    assert [is_reject for is_reject, _ in states(rule, None, "x..xx..x.x")] == [
        False, False, False, False, True, True, False, False, False, True,
    ]  # fmt: skip
    assert all(is_decided for _, is_decided in states(rule, None, "..")) and rule.end() is None
    assert not rule.add(None, True)[0].is_reject, "ended: what was before does not count"
