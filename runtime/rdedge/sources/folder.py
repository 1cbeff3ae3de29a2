"""A folder of image files (or one file) as a frame source."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from rdedge.errors import ImageError, SourceError
from rdedge.frames import Frame
from rdedge.images import IMAGE_SUFFIXES, read_image
from rdedge.sources.base import SourceInfo


class FolderSource:
    """Every image below a folder in order of name, each read when its turn comes; hidden files are left alone."""

    def __init__(self, path: Path, *, skip_bad: bool = False):
        """``skip_bad`` leaves out files that cannot be used and remembers why. Raises SourceError."""
        self.name = str(path)
        self.skipped: list[ImageError] = []
        self._skip_bad = skip_bad
        self._paths = [path] if path.is_file() else _image_paths(path)

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        for path in self._paths:
            try:
                image = read_image(path)
            except ImageError as exc:
                if not self._skip_bad:
                    raise ImageError(exc.problem, remedy=f"{exc.remedy} (--skip-bad goes on without it)") from exc
                self.skipped.append(exc)
                continue
            yield Frame(image_bgr_u8=image, index=index, captured_at_s=time.monotonic(), source=str(path))
            index += 1
        if index == 0:
            first = self.skipped[0].problem
            raise SourceError(
                f"{self.name}: none of its {len(self.skipped)} pictures can be used (the first: {first})",
                remedy="check where they come from",
            )

    @property
    def info(self) -> SourceInfo:
        """See FrameSource: each picture has its own size."""
        return SourceInfo()

    def close(self) -> None:
        """See FrameSource.close: nothing is held between two pictures."""


def _image_paths(folder: Path) -> list[Path]:
    paths = []
    try:
        for parent, subfolders, names in os.walk(folder, onerror=_raise):
            # hidden ones are no parts: thumbnails, wastebaskets, the "._x.png" that a Mac leaves on a stick
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            found = (Path(parent, name) for name in names if not name.startswith("."))
            paths += [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    except OSError as exc:
        raise SourceError(
            f"{exc.filename}: cannot be read ({exc.strerror})", remedy="check the path and its permissions"
        ) from exc
    if not paths:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        raise SourceError(f"{folder}: holds no image files", remedy=f"name a folder with images ({known})")
    return sorted(paths)


def _raise(error: OSError) -> None:
    raise error
