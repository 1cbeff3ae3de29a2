"""Where frames come from; ``open_source`` picks the module by the address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rdedge.errors import SourceError, UsageError
from rdedge.events import EventHandler, tell
from rdedge.sources.base import Camera, FrameSource, SourceInfo
from rdedge.sources.health import WatchLimits
from rdedge.sources.uri import host_and_port, masked, options_of

__all__ = ["Camera", "FrameSource", "SourceInfo", "WatchLimits", "is_camera", "open_camera", "open_source"]

CAMERA_SCHEMES = ("v4l2", "csi", "rtsp", "http", "https", "gige", "usb3")
_TRIGGER = "trigger+"


def open_source(
    uri: str,
    *,
    skip_bad: bool = False,
    camera: str = "",
    on_event: EventHandler = tell,
    limits: WatchLimits | None = None,
) -> FrameSource:
    """A source by its address.

    Files: ``folder:PATH``, ``video:PATH`` or a plain path to a folder, an image or a video. Cameras, which are opened
    when iterated, watched, and opened again after faults: ``v4l2:///dev/video0``, ``csi://0``, ``rtsp://...``,
    ``http://...``, ``gige://ADDRESS``, ``usb3://ID``, each also as ``trigger+CAMERA#from=udp:HOST:PORT``. ``camera``
    names a camera in its events; ``skip_bad`` is for files.

    Raises SourceError, and UsageError for an address that cannot be meant; MissingExtraError only when iterated.
    """
    if not is_camera(uri):
        return _open_files(uri, skip_bad=skip_bad)
    from rdedge.sources.watched import WatchedSource

    open_one, on_close = _camera_opener(uri)
    return WatchedSource(masked(uri), open_one, camera=camera, on_event=on_event, limits=limits, on_close=on_close)


def is_camera(uri: str) -> bool:
    """Whether the address is a camera's, which never ends by itself. Raises UsageError for an unknown ``xyz://``."""
    scheme, separator, _ = uri.removeprefix(_TRIGGER).partition("://")
    if separator and scheme not in CAMERA_SCHEMES and not Path(uri).exists():
        known = ", ".join(f"{known}://" for known in CAMERA_SCHEMES)
        raise UsageError(f"{masked(uri)}: unknown kind of camera", remedy=f"use a path or one of {known}")
    return bool(separator) and scheme in CAMERA_SCHEMES


def open_camera(uri: str) -> Camera:
    """One connection to a camera, neither watched nor wrapped. Raises UsageError, MissingExtraError, CameraFault."""
    return _opener(uri)()


def _opener(uri: str) -> Callable[[], Camera]:
    """What opens it. Raises UsageError for an address that is wrong whatever camera is there."""
    scheme = uri.partition("://")[0]
    if scheme == "v4l2":
        from rdedge.sources.v4l2 import open_v4l2, wanted_of

        wanted_of(uri)
        return lambda: open_v4l2(uri)
    if scheme == "csi":
        from rdedge.sources.csi import csi_pipeline, open_csi

        csi_pipeline(uri)
        return lambda: open_csi(uri)
    if scheme == "rtsp":
        from rdedge.sources.rtsp import open_rtsp

        host_and_port(uri)
        return lambda: open_rtsp(uri)
    if scheme in ("http", "https"):
        from rdedge.sources.mjpeg import MjpegCamera

        host_and_port(uri)
        return lambda: MjpegCamera(uri)
    from rdedge.sources.aravis import AravisCamera, settings_of

    settings_of(uri)
    return lambda: AravisCamera(uri)


def _camera_opener(uri: str) -> tuple[Callable[[], Camera], Callable[[], None] | None]:
    """How to open it, and what to close when all is over."""
    if not uri.startswith(_TRIGGER):
        if uri.startswith(("gige", "usb3")) and "trigger=software" in uri:
            raise UsageError(f"{masked(uri)}: nothing fires it", remedy=f"write {_TRIGGER}... and #from=udp:HOST:PORT")
        return _opener(uri), None
    from rdedge.sources.trigger import open_triggers
    from rdedge.sources.triggered import OPTIONS, FiredCamera, PickedCamera, SoftwareTriggered

    camera_uri, _, fragment = uri.removeprefix(_TRIGGER).partition("#")
    options = options_of(fragment, masked(uri), known=OPTIONS)
    open_inner = _opener(camera_uri)
    triggers = open_triggers(options)

    def open_triggered() -> Camera:
        camera = open_inner()
        if isinstance(camera, SoftwareTriggered) and camera.is_software_triggered:
            return FiredCamera(camera, triggers, options)
        return PickedCamera(camera, triggers, options)

    return open_triggered, triggers.close


def _open_files(uri: str, *, skip_bad: bool) -> FrameSource:
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
