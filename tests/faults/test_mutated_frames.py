"""Frames damaged on their way: whatever the bytes, the camera goes on, and what is delivered has the right size."""

from __future__ import annotations

import random
import threading
from collections import Counter

import numpy as np
import pytest
from camera_servers import MjpegServer, jpeg, part_image, wait_until

from rdedge.events import Event
from rdedge.images import silence_opencv
from rdedge.sources import WatchLimits, open_source

SIZE_HW = (48, 64)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes cut out, doubled, zeroed or made up; sometimes in the header alone, where sizes stand."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(min(len(changed), rng.choice((24, 200, len(changed)))))
        length = rng.choice((1, 2, 16, len(changed) // 3))
        match rng.randrange(5):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = changed[at : at + length]
            case 3:
                changed[at : at + length] = bytes(length)
            case _:
                changed[at : at + length] = rng.randbytes(length)
        if not changed:
            return b"\xff"
    return bytes(changed)


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_frames_neither_crash_nor_hang_nor_pass_as_another_size(
    count: int, capfd: pytest.CaptureFixture[str]
) -> None:
    silence_opencv()
    rng = random.Random(20261122)
    events: list[Event] = []
    server = MjpegServer()
    server.interval_s = 0.002

    def picture(index: int) -> bytes:
        good = jpeg(part_image(index, SIZE_HW))
        return mutated(good, rng) if index % 2 and index < 2 * count else good

    server.picture = picture
    limits = WatchLimits(retry_s=0.02, retry_cap_s=0.05, reopen_s=5.0, settle_frames=3, slow_factor=1e9)
    source = open_source(server.uri, on_event=events.append, limits=limits)
    delivered: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: delivered.extend(frame.image_bgr_u8 for frame in source))
    thread.start()
    try:
        wait_until(lambda: server.sent >= 2 * count + 20, "all frames are sent")
        wait_until(lambda: not source.info.faults, "well again")
    finally:
        source.close()
        thread.join(60)
        server.close()
    withheld = source.info.withheld
    assert not thread.is_alive()
    assert {image.shape for image in delivered} == {(*SIZE_HW, 3)}
    assert len(delivered) >= count and withheld > 0.3 * count
    kinds = Counter(event.kind for event in events)
    assert set(kinds) <= {"bad-frame", "black", "saturated", "resized", "frozen", "recovered", "unplugged", "silent"}
    capfd.readouterr()  # libjpeg's own remarks
    with capfd.disabled():
        print(f"\n{count} mutated frames: {len(delivered)} delivered, {withheld} withheld, {dict(kinds)}")
