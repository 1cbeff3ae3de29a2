"""Any GStreamer pipeline as a camera. Through PyGObject, since the OpenCV of pip is built without GStreamer."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdedge.errors import CameraFault, MissingExtraError, UsageError
from rdedge.frames import Frame
from rdedge.sources.base import SourceInfo
from rdedge.sources.clock import GapCounter
from rdedge.sources.gi_modules import load_gi
from rdedge.sources.uri import masked

_READ_TIMEOUT_S = 5.0
_OPEN_TIMEOUT_S = 10.0
_SAME_CLOCK_S = 0.01
_SINK = "video/x-raw,format=BGR ! appsink name=line max-buffers=4 drop=true sync=false"


def quoted(text: str) -> str:
    """A value for a pipeline's text, whatever characters it has."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class GStreamerCamera:
    """A Camera that runs ``pipeline``, which must end in raw video that can be BGR."""

    def __init__(self, pipeline: str, name: str):
        """Raises MissingExtraError without GStreamer or one of the pipeline's elements, UsageError, CameraFault."""
        self.name = name
        self._gst = load_gi("Gst", "1.0")
        self._gst.init(None)
        self._pipeline = self._parsed(pipeline)
        self._sink = self._pipeline.get_by_name("line")
        self._lock = threading.Lock()
        self._info = SourceInfo()
        self._index = 0
        self._gaps = GapCounter()
        self._is_closed = False
        self._offset_s: float | None = None  # of the pipeline's clock to time.monotonic, where they are one
        self._start()

    @property
    def info(self) -> SourceInfo:
        """See Camera."""
        return self._info

    def read(self) -> Frame | None:
        """See Camera."""
        gst = self._gst
        sample = self._sink.emit("try-pull-sample", round(_READ_TIMEOUT_S * gst.SECOND))
        arrived_s = time.monotonic()
        if sample is None:
            if self._is_closed:
                return None
            raise self._fault("silent", f"no frame for {_READ_TIMEOUT_S:.0f} s")
        pts = sample.get_buffer().pts
        pts_s = None if pts == gst.CLOCK_TIME_NONE else pts / gst.SECOND
        self._look_at(sample.get_caps().get_structure(0), pts_s)
        taken_s = None
        if pts_s is not None and self._offset_s is not None:
            taken_s = min(arrived_s, pts_s + self._offset_s)
        frame = Frame(
            image_bgr_u8=self._pixels(sample),
            index=self._index,
            captured_at_s=arrived_s,
            source=self.name,
            device_timestamp_s=taken_s,
        )
        self._index += 1
        return frame

    def close(self) -> None:
        """See Camera."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._pipeline.set_state(self._gst.State.NULL)

    def _parsed(self, pipeline: str) -> Any:
        try:
            return self._gst.parse_launch(f"{pipeline} ! {_SINK}")
        except self._gst_error() as exc:
            if "no element" in exc.message:
                raise MissingExtraError(
                    f"{self.name}: this GStreamer has {exc.message}",
                    remedy="nvarguscamerasrc and nvvidconv come with a Jetson's JetPack; else apt install "
                    "gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-libav",
                ) from exc
            raise UsageError(f"{self.name}: {masked(exc.message)}", remedy="check the address's options") from exc

    def _gst_error(self) -> type[Any]:
        error: type[Any] = load_gi("GLib", "2.0").Error
        return error

    def _start(self) -> None:
        gst = self._gst
        self._pipeline.set_state(gst.State.PLAYING)
        change, _, _ = self._pipeline.get_state(round(_OPEN_TIMEOUT_S * gst.SECOND))
        if change in (gst.StateChangeReturn.FAILURE, gst.StateChangeReturn.ASYNC):
            fault = self._fault("unplugged", "does not start")
            self.close()
            raise fault
        clock = self._pipeline.get_clock()
        earliest_s = time.monotonic() - _SAME_CLOCK_S
        if clock is not None and earliest_s <= clock.get_time() / gst.SECOND <= time.monotonic() + _SAME_CLOCK_S:
            self._offset_s = self._pipeline.get_base_time() / gst.SECOND

    def _fault(self, kind: str, text: str) -> CameraFault:
        """What the pipeline says of it, else ``text``."""
        gst = self._gst
        message = self._pipeline.get_bus().pop_filtered(gst.MessageType.ERROR)
        if message is None and self._sink.get_property("eos"):
            return CameraFault("unplugged", f"{self.name}: the stream ended", remedy="check the camera")
        if message is None:
            return CameraFault(kind, f"{self.name}: {text}", remedy="check its power and cable")
        error, _ = message.parse_error()
        is_refused = "nauthorized" in error.message
        return CameraFault(
            "credentials" if is_refused else "unplugged",
            f"{self.name}: {masked(error.message)}",
            remedy="check user and password" if is_refused else "check the camera; on a Jetson restart nvargus-daemon",
        )

    def _look_at(self, caps: Any, pts_s: float | None) -> None:
        """Size and rate of the stream; frames that its timestamps show to be missing."""
        is_rated, numerator, denominator = caps.get_fraction("framerate")
        fps = numerator / denominator if is_rated and numerator > 0 else None
        if fps is not None and pts_s is not None:
            self._gaps.add(pts_s, fps)
        size_hw = caps.get_int("height")[1], caps.get_int("width")[1]
        self._info = SourceInfo(size_hw=size_hw, fps=fps, lost=self._gaps.lost)

    def _pixels(self, sample: Any) -> NDArray[np.uint8]:
        """(H, W, 3), copied; GStreamer pads rows to four bytes."""
        height, width = self._info.size_hw or (0, 0)
        buffer = sample.get_buffer()
        is_mapped, view = buffer.map(self._gst.MapFlags.READ)
        if not is_mapped:
            raise CameraFault("unplugged", f"{self.name}: a frame cannot be read", remedy="check the camera")
        try:
            stride = -(-width * 3 // 4) * 4
            rows = np.frombuffer(view.data, np.uint8, height * stride).reshape(height, stride)
            return np.array(rows[:, : width * 3]).reshape(height, width, 3)
        finally:
            buffer.unmap(view)
