"""Where frames come from; ``open_source`` picks the module by what the path is."""

from __future__ import annotations

from pathlib import Path

from rdedge.errors import SourceError
from rdedge.sources.base import FrameSource

__all__ = ["FrameSource", "open_source"]


def open_source(uri: str, *, skip_bad: bool = False) -> FrameSource:
    """``folder:PATH``, ``video:PATH`` or a plain path to a folder, an image or a video. Raises SourceError."""
    from rdedge.images import IMAGE_SUFFIXES
    from rdedge.sources.folder import FolderSource
    from rdedge.sources.video import VIDEO_SUFFIXES, VideoSource

    scheme, separator, rest = uri.partition(":")
    if not separator or scheme not in ("folder", "video"):
        scheme, rest = "", uri
    path = Path(rest)
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder", remedy="name a folder of images, an image or a video file")
    suffix = path.suffix.lower()
    if scheme == "video" or (not scheme and path.is_file() and suffix in VIDEO_SUFFIXES):
        return VideoSource(path)
    if scheme == "folder" or path.is_dir() or suffix in IMAGE_SUFFIXES:
        return FolderSource(path, skip_bad=skip_bad)
    known = " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
    raise SourceError(f"{path}: unknown kind of source", remedy=f"name a folder or a file of these kinds: {known}")
