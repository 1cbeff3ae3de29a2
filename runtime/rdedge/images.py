"""Reads image files strictly: whole, 8 bits, grey or colour; everything else is refused by name and reason."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge.errors import ImageError

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".jp2", ".pgm", ".ppm", ".pnm"))
MIN_SIDE_PX = 16
MAX_ASPECT = 32  # a line-scan strip may be 16:1; beyond this a file is more likely broken than a part
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_AGAIN = "copy it again or leave it out"


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image file of any format OpenCV reads -> (H, W, 3) BGR uint8; grey is repeated over the channels.

    JPEG orientation tags are obeyed. Raises ImageError naming the file and the reason.
    """
    return decode_image(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """A whole file that ``decode_image`` takes. Raises ImageError."""
    try:
        if path.exists() and not path.is_file():  # a named pipe would be waited for for ever
            raise ImageError(f"{path}: is not a file", remedy="name an image file")
        data = path.read_bytes()
    except OSError as exc:
        raise ImageError(
            f"{path}: cannot be read ({exc.strerror})", remedy="check the path and its permissions"
        ) from exc
    if not data:
        raise ImageError(f"{path}: is empty (0 bytes)", remedy=_AGAIN)
    return data


def decode_image(data: bytes, name: str | Path) -> NDArray[np.uint8]:
    """The bytes of an image file -> (H, W, 3) BGR uint8, as ``read_image``; ``name`` is for its errors."""
    image = _decode(data, name)
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR).astype(np.uint8, copy=False)
    return image


def read_mask(path: Path) -> NDArray[np.uint8]:
    """A ground-truth mask -> (H, W) uint8; of a colour file the brightest channel. Raises ImageError."""
    mask = _decode(read_bytes(path), path)
    return mask if mask.ndim == 2 else mask.max(axis=2)


def silence_opencv() -> None:
    """No more lines of OpenCV and FFmpeg on stderr, for the whole process: a command tells a failure itself."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET, read when the first video is opened
    if hasattr(cv2, "setLogLevel"):  # OpenCV 4
        cv2.setLogLevel(0)
    else:
        cv2.utils.logging.setLogLevel(0)


def _decode(data: bytes, path: str | Path) -> NDArray[np.uint8]:
    flags = cv2.IMREAD_UNCHANGED
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data, path)
        flags = cv2.IMREAD_ANYCOLOR  # JPEG has neither alpha nor depth to lose, but may carry an orientation
    elif data.startswith(_PNG_SIGNATURE):
        _check_png(data, path)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as exc:
        raise ImageError(f"{path}: OpenCV refuses it ({exc.err})", remedy=_AGAIN) from exc
    if image is None:
        raise ImageError(f"{path}: damaged, or not an image format that OpenCV reads", remedy=_AGAIN)
    return _checked(image, path)


def _checked(image: NDArray[np.generic], path: str | Path) -> NDArray[np.uint8]:
    """Refuses depths, channels and sizes that would have to be guessed about."""
    height, width = image.shape[:2]
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.dtype != np.uint8:
        bits = image.dtype.itemsize * 8
        raise ImageError(
            f"{path}: has {bits} bits per channel ({image.dtype}), expected 8",
            remedy="convert it to 8 bits by the scale your camera uses",
        )
    if channels not in (1, 3):
        what = "an alpha channel" if channels in (2, 4) else f"{channels} channels"
        raise ImageError(f"{path}: has {what}, expected grey or colour", remedy="save it without it")
    if min(height, width) < MIN_SIDE_PX or max(height, width) > MAX_ASPECT * min(height, width):
        raise ImageError(
            f"{path}: is {width}x{height}, expected at least {MIN_SIDE_PX} pixels a side and at most {MAX_ASPECT}:1",
            remedy="leave it out or crop it",
        )
    return image[:, :, 0] if channels == 1 and image.ndim == 3 else image  # type: ignore[return-value]


def _check_jpeg(data: bytes, path: str | Path) -> None:
    """Walks the segments up to the picture data, in which FF D9 can only be the end marker.

    OpenCV fills what a truncated JPEG lacks with grey, and says nothing; a CMYK one it converts by guess.
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:
            if data.find(b"\xff\xd9", position) >= 0:
                return
            break
        is_frame_header = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if is_frame_header and data[position + 9 : position + 10] == b"\x04":
            raise ImageError(f"{path}: is a CMYK JPEG, expected grey or RGB", remedy="save it as RGB")
        position += 1 if marker == 0xFF else 2 + length
    raise ImageError(f"{path}: truncated or damaged JPEG (no end marker)", remedy=_AGAIN)


def _check_png(data: bytes, path: str | Path) -> None:
    """Every chunk whole and its checksum right: libpng hands out what it has decoded before a fault."""
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        (crc,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(memoryview(data)[position + 4 : end - 4]) != crc:
            raise ImageError(f"{path}: damaged PNG (checksum of chunk at byte {position})", remedy=_AGAIN)
        if data[position + 4 : position + 8] == b"IEND":
            return
        position = end
    raise ImageError(f"{path}: truncated PNG", remedy=_AGAIN)
