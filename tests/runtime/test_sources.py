"""Frames from folders, images and videos: in order, all of them, or an error that says which is missing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rdedge.errors import ImageError, SourceError
from rdedge.sources import open_source
from rdedge.sources.folder import FolderSource
from rdedge.sources.video import VideoSource

WriteVideo = Callable[..., Path]
LEVELS = [10 + 2 * i for i in range(100)]  # four seconds


def level_of(image: NDArray[np.uint8]) -> int:
    return round(float(image.mean()))


def test_a_folder_gives_its_images_in_order_of_name(parts: Path) -> None:
    (parts / "notes.txt").write_text("no image")
    before_s = time.monotonic()
    frames = list(open_source(str(parts)))
    assert [Path(frame.source).name for frame in frames] == ["a.png", "b.png", "z.png"]
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert before_s <= frames[0].captured_at_s <= frames[-1].captured_at_s <= time.monotonic()
    assert frames[0].image_bgr_u8.shape == (48, 64, 3)


def test_one_image_is_a_source(parts: Path) -> None:
    (frame,) = open_source(str(parts / "a.png"))
    assert frame.source == str(parts / "a.png")


def test_schemes_name_the_kind(parts: Path, write_video: WriteVideo) -> None:
    assert len(list(open_source(f"folder:{parts}"))) == 3
    video = write_video("clip.avi", "MJPG", [50]).rename(parts / "clip.bin")
    assert len(list(open_source(f"video:{video}"))) == 1


def test_hidden_files_are_no_parts(parts: Path) -> None:
    (parts / "._a.png").write_bytes(b"\x00\x05\x16\x07 of a Mac")
    (parts / ".thumbnails").mkdir()
    (parts / ".thumbnails" / "a.png").write_bytes(b"small")
    assert len(list(FolderSource(parts))) == 3


def test_a_folder_of_a_hidden_folder_is_a_source(parts: Path) -> None:
    hidden = parts.rename(parts.parent / ".parts")
    assert len(list(FolderSource(hidden))) == 3


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "nowhere: no such file or folder; name a folder of images, an image or a video file"),
        ("empty", "empty: holds no image files; name a folder with images (.bmp .jp2"),
        ("model.onnx", "model.onnx: unknown kind of source; name a folder or a file of these kinds: .avi .bmp"),
        ("dangling.png", "dangling.png: no such file or folder"),
        ("pipe.png", "pipe.png: cannot be read (Not a directory)"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"x")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(SourceError) as caught:
        open_source(str(tmp_path / name))
    assert says in str(caught.value)


def test_a_bad_image_stops_unless_it_may_be_skipped(parts: Path) -> None:
    (parts / "b.png").write_bytes(b"")
    source = FolderSource(parts)
    frames = iter(source)
    assert Path(next(frames).source).name == "a.png"
    with pytest.raises(ImageError, match=r"b.png: is empty .*\(--skip-bad goes on without it\)"):
        next(frames)
    skipping = FolderSource(parts, skip_bad=True)
    assert [(frame.index, Path(frame.source).name) for frame in skipping] == [(0, "a.png"), (1, "b.png"), (2, "z.png")]
    assert [error.problem for error in skipping.skipped] == [f"{parts / 'b.png'}: is empty (0 bytes)"]


def test_a_link_to_nowhere_is_a_bad_image_not_a_missing_one(parts: Path) -> None:
    (parts / "b.png").symlink_to("nowhere")
    with pytest.raises(ImageError, match=r"b\.png: cannot be read"):
        list(FolderSource(parts))


def test_a_folder_of_which_nothing_can_be_used_is_an_error(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    source = FolderSource(tmp_path, skip_bad=True)
    with pytest.raises(SourceError, match=r"none of its 2 pictures can be used \(the first: .*a.png: is empty"):
        list(source)
    source.close()


@pytest.mark.parametrize(("name", "codec"), [("clip.avi", "MJPG"), ("clip.mkv", "FFV1"), ("clip.mp4", "mp4v")])
def test_a_video_gives_every_frame(write_video: WriteVideo, name: str, codec: str) -> None:
    path = write_video(name, codec, LEVELS)
    frames = list(open_source(str(path)))
    assert [frame.index for frame in frames] == list(range(100))
    assert {frame.source for frame in frames} == {str(path)}
    assert np.abs(np.subtract([level_of(frame.image_bgr_u8) for frame in frames], LEVELS)).max() <= 6
    assert frames[0].image_bgr_u8.shape == (48, 64, 3)


@pytest.mark.parametrize("name", ["größe 検査.avi", "50%20d.avi", "clip1.AVI"])
def test_any_name_of_a_video_will_do(write_video: WriteVideo, name: str) -> None:
    path = write_video("clip.avi", "MJPG", [50, 60])
    assert len(list(open_source(str(path.rename(path.with_name(name)))))) == 2


def test_a_video_whose_name_is_not_utf8_is_refused(write_video: WriteVideo) -> None:
    path = write_video("clip.avi", "MJPG", [50])
    renamed = path.rename(path.with_name(os.fsdecode(b"l\xe4nge.avi")))
    with pytest.raises(SourceError, match="its name is not UTF-8; rename the file"):
        open_source(str(renamed))


@pytest.mark.parametrize(("name", "codec"), [("clip.avi", "MJPG"), ("clip.mkv", "FFV1")])
@pytest.mark.parametrize("share", [0.4, 0.6])
def test_a_truncated_video_is_an_error_after_its_last_frame(
    write_video: WriteVideo, name: str, codec: str, share: float
) -> None:
    path = write_video(name, codec, LEVELS)
    os.truncate(path, int(share * path.stat().st_size))
    frames = []
    with pytest.raises(SourceError) as caught:
        for frame in open_source(str(path)):
            frames.append(frame)
    assert f"ended after {len(frames)} of 100 frames; it is truncated or damaged; copy it again" in str(caught.value)
    assert 0 < len(frames) < 70


def test_an_avi_that_lacks_its_last_frames_is_noticed(write_video: WriteVideo) -> None:
    path = write_video("clip.avi", "MJPG", LEVELS)
    data = path.read_bytes()
    last = data.rindex(b"00dc", 0, data.rindex(b"idx1"))  # the chunk of the last picture; its index entries follow
    path.write_bytes(data[:last])
    with pytest.raises(SourceError, match="ended after 99 of 100 frames"):
        list(VideoSource(path))


@pytest.mark.parametrize("data", [b"", b"no video\n" * 100], ids=["empty", "text"])
@pytest.mark.parametrize("name", ["clip.avi", "clip.mkv", "clip.mp4"])
def test_what_is_no_video_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match="not a video that this OpenCV opens; convert it"):
        open_source(str(tmp_path / name))


def test_a_folder_is_no_video(parts: Path) -> None:
    with pytest.raises(SourceError, match="not a video"):
        open_source(f"video:{parts}")


class Clip:
    """A capture that ends after so many frames, whatever it promises; its frames last as long as told."""

    def __init__(self, frames: int, promised: float, fps: float, frame_ms: float):
        self._read, self._frames, self._frame_ms = 0, frames, frame_ms
        self._properties = {cv2.CAP_PROP_FRAME_COUNT: promised, cv2.CAP_PROP_FPS: fps}

    def isOpened(self) -> bool:
        return True

    def release(self) -> None:
        pass

    def get(self, property_id: int) -> float:
        return self._properties.get(property_id, max(0, self._read - 1) * self._frame_ms)

    def read(self) -> tuple[bool, NDArray[np.uint8] | None]:
        if self._read == self._frames:
            return False, None
        self._read += 1
        return True, np.zeros((48, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "clip", "is_whole"),
    [
        ("a.mkv", Clip(300, promised=10_000, fps=1000.0, frame_ms=33.3), True),
        ("a.mkv", Clip(120, promised=300, fps=30.0, frame_ms=33.3), False),
        ("a.mp4", Clip(95, promised=100, fps=25.0, frame_ms=40.0), True),
        ("a.mp4", Clip(50, promised=100, fps=25.0, frame_ms=40.0), False),
        ("a.avi", Clip(95, promised=100, fps=25.0, frame_ms=40.0), False),
        ("a.mpg", Clip(50, promised=27, fps=25.0, frame_ms=40.0), True),
        ("a.webm", Clip(50, promised=-9.2e18, fps=25.0, frame_ms=40.0), True),
        ("a.mkv", Clip(50, promised=100, fps=0.0, frame_ms=0.0), True),
        ("a.mkv", Clip(0, promised=0, fps=25.0, frame_ms=40.0), False),
    ],
    ids=[
        "rate is a guess", "half the time", "cut at a key frame", "half", "AVI counts", "count too low",
        "length unknown", "rate unknown", "no frame",
    ],
)  # fmt: skip
def test_a_promise_of_frames_is_held_as_far_as_it_is_known(
    write_video: WriteVideo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, clip: Clip, is_whole: bool
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: clip)
    source = VideoSource(tmp_path / name)
    if is_whole:
        assert len(list(source)) > 0
    else:
        with pytest.raises(SourceError, match="truncated or damaged"):
            list(source)


def test_a_video_closed_while_it_is_read_just_ends(write_video: WriteVideo) -> None:
    source = VideoSource(write_video("clip.avi", "MJPG", LEVELS))
    seen: list[int] = []
    started = threading.Event()

    def read() -> None:
        for frame in source:
            seen.append(frame.index)
            started.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert started.wait(10)
    source.close()
    source.close()
    thread.join(10)
    assert not thread.is_alive() and 0 < len(seen) <= 100


def test_an_opencv_without_ffmpeg_still_opens_videos(write_video: WriteVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2.videoio_registry, "getStreamBackends", lambda: [])
    assert len(list(VideoSource(write_video("clip.avi", "MJPG", LEVELS)))) == 100
