"""Image files: what OpenCV writes is read back; what is broken or would have to be guessed at is refused by name."""

from __future__ import annotations

import base64
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rdedge.errors import ImageError
from rdedge.images import IMAGE_SUFFIXES, read_image, read_mask

LOSSY = (".jpg", ".jpeg", ".webp", ".jp2")
# 16 x 16 pixels, four components with Adobe's marker
CMYK_JPEG = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwD/////////////////////////////////////////////////////////////////////////////////"
    "/////8AAFAgAEAAQBEMRAE0RAFkRAEsRAP/EABUAAQEAAAAAAAAAAAAAAAAAAAAD/8QAFBABAAAAAAAAAAAAAAAAAAAAAP/aAA4EQwBNAFkA"
    "SwAAPwCiaagAAAD/2Q=="
)

Picture = NDArray[np.uint8]


def picture(height: int = 40, width: int = 56) -> Picture:
    """Smooth in every channel, none like another, no symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [250 * x / width, 250 * y / height, 255 - 127 * (x + y) / (height + width)]
    return np.stack(channels, axis=2).astype(np.uint8)


def encoded(suffix: str, image: NDArray[np.generic]) -> bytes:
    ok, data = cv2.imencode(suffix, image)
    assert ok
    return data.tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """The JPEG with an EXIF segment that says how the camera was held."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"MM\x00\x2a" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    body = b"Exif\x00\x00" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def refusal(path: Path) -> str:
    for read in (read_image, read_mask):
        with pytest.raises(ImageError) as caught:
            read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "; " in message, "an error says what to do"
    return message


def saved(tmp_path: Path, name: str, data: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".pgm"}))
def test_colour_is_read_as_it_was_written(tmp_path: Path, suffix: str) -> None:
    image = read_image(saved(tmp_path, f"a{suffix}", encoded(suffix, picture())))
    assert (image.shape, image.dtype) == ((40, 56, 3), np.uint8)
    assert np.abs(image.astype(int) - picture()).max() <= (24 if suffix in LOSSY else 0)


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".ppm"}))
def test_grey_is_repeated_over_the_channels(tmp_path: Path, suffix: str) -> None:
    grey = picture()[:, :, 2]
    path = saved(tmp_path, f"a{suffix}", encoded(suffix, grey))
    image = read_image(path)
    assert image.shape == (40, 56, 3)
    assert np.abs(image.astype(int) - grey[:, :, None]).max() <= (24 if suffix in LOSSY else 0)
    assert (read_mask(path) == image.max(axis=2)).all()


def test_a_mask_of_colour_is_its_brightest_channel(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.png", encoded(".png", picture()))
    assert (read_mask(path) == picture().max(axis=2)).all()


def test_the_name_says_nothing_the_bytes_do(tmp_path: Path) -> None:
    assert (read_image(saved(tmp_path, "a.jpg", encoded(".png", picture()))) == picture()).all()


@pytest.mark.parametrize("name", ["größe 検査 %20d.png", os.fsdecode(b"l\xe4nge.png"), "a b\n.png"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    assert (read_image(saved(tmp_path, name, encoded(".png", picture()))) == picture()).all()


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    palette = chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0]))  # red, green
    rows = (b"\x00" + bytes([0] * 16 + [1] * 16)) * 32
    image = read_image(saved(tmp_path, "a.png", png(32, 32, 8, 3, rows, palette)))
    assert image[0, 0].tolist() == [0, 0, 255] and image[0, 31].tolist() == [0, 255, 0]


def test_one_bit_is_black_or_white(tmp_path: Path) -> None:
    image = read_image(saved(tmp_path, "a.png", png(32, 32, 1, 0, b"\x00\xff\xff\x00\x00" * 32)))
    assert image[0, :, 0].tolist() == [255] * 16 + [0] * 16


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_jpeg_is_turned_as_the_camera_was_held(tmp_path: Path, orientation: int, turns: int) -> None:
    jpeg = encoded(".jpg", picture())
    upright = read_image(saved(tmp_path, "a.jpg", jpeg))
    turned = read_image(saved(tmp_path, "b.jpg", with_orientation(jpeg, orientation)))
    assert (turned == np.rot90(upright, turns)).all()


def test_data_after_a_jpegs_end_is_left_alone(tmp_path: Path) -> None:
    jpeg = encoded(".jpg", picture())
    assert read_image(saved(tmp_path, "a.jpg", jpeg + bytes(5000) + b"motion" * 1000)).shape == (40, 56, 3)


def test_a_progressive_jpeg_with_fill_bytes_is_read(tmp_path: Path) -> None:
    ok, data = cv2.imencode(".jpg", picture(), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    assert ok
    jpeg = data.tobytes()
    assert read_image(saved(tmp_path, "a.jpg", jpeg[:2] + b"\xff\xff" + jpeg[2:])).shape == (40, 56, 3)


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(
    tmp_path: Path, suffix: str, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    image = picture() if suffix != ".pgm" else picture()[:, :, 0]
    data = encoded(suffix, image)
    path = saved(tmp_path, f"a{suffix}", data[: int(share * len(data))])
    capfd.readouterr()
    message = refusal(path)
    assert "truncated" in message or "damaged" in message
    if int(cv2.__version__.partition(".")[0]) >= 5:  # 4 writes some faults to stderr whatever its log level
        assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4, 0.6, 0.8, 0.95])
def test_a_flipped_byte_in_a_png_is_noticed(tmp_path: Path, share: float) -> None:
    data = bytearray(encoded(".png", picture()))
    data[int(share * len(data))] ^= 0x10
    message = refusal(saved(tmp_path, "a.png", bytes(data)))
    assert "damaged PNG (checksum of chunk at byte " in message or "truncated PNG" in message


def test_a_thumbnails_end_is_not_the_pictures(tmp_path: Path) -> None:
    thumbnail = encoded(".jpg", picture(16, 16))
    segment = b"\xff\xe2" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    jpeg = encoded(".jpg", picture())
    cut = (jpeg[:2] + segment + jpeg[2:])[: -len(jpeg) // 3]
    assert "truncated or damaged JPEG (no end marker)" in refusal(saved(tmp_path, "a.jpg", cut))


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.png", b"", "is empty (0 bytes)"),
        ("a.png", b"no image\n" * 100, "damaged, or not an image format that OpenCV reads"),
        ("a.jpg", b"\xff\xd8", "truncated or damaged JPEG"),
        ("a.jpg", b"\xff\xd8" + b"no JPEG" * 100 + b"\xff\xd9", "truncated or damaged JPEG"),
        ("a.jpg", CMYK_JPEG, "is a CMYK JPEG, expected grey or RGB; save it as RGB"),
        ("a.png", encoded(".png", picture(1, 1)), "is 1x1, expected at least 16 pixels a side"),
        ("a.png", encoded(".png", picture(10, 30000)), "is 30000x10, expected at least 16 pixels a side"),
        ("a.png", encoded(".png", picture(16, 513)), "is 513x16, expected at least 16 pixels a side and at most 32:1"),
        ("a.png", encoded(".png", picture().astype(np.uint16)), "has 16 bits per channel (uint16), expected 8"),
        ("a.tif", encoded(".tif", picture().astype(np.float32)), "has 32 bits per channel (float32), expected 8"),
        ("a.png", encoded(".png", np.dstack([picture(), picture()[:, :, 0]])), "has an alpha channel"),
        ("a.png", png(32, 32, 8, 4, (b"\x00" + bytes(64)) * 32), "has an alpha channel"),
        ("a.png", png(100_000, 100_000, 8, 2, bytes(100)), "OpenCV refuses it (pixels <= CV_IO_MAX_IMAGE_PIXELS)"),
        ("a.png", png(64, 64, 8, 2, bytes(193 * 20)), "damaged, or not an image format that OpenCV reads"),
        ("a.png", png(0, 64, 8, 2, b""), "damaged, or not an image format that OpenCV reads"),
    ],
    ids=[
        "0 bytes", "text", "JPEG start", "JPEG noise", "CMYK", "1x1", "30000x10", "33:1", "16 bits", "float",
        "alpha", "grey with alpha", "bomb", "too few rows", "no width",
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_the_reason(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    assert says in refusal(saved(tmp_path, name, data))


def test_the_longest_strip_is_read(tmp_path: Path) -> None:
    assert read_image(saved(tmp_path, "a.png", encoded(".png", picture(16, 512)))).shape == (16, 512, 3)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    assert "is not a file" in refusal(tmp_path / "folder.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "is not a file" in refusal(tmp_path / "pipe.png")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "dangling.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert "cannot be read (Too many levels of symbolic links)" in refusal(tmp_path / "loop.png")
    assert "cannot be read (File name too long)" in refusal(tmp_path / ("x" * 300))
