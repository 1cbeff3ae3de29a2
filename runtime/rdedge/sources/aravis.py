"""Industrial cameras, GigE Vision and USB3 Vision, through Aravis: ``gige://192.168.0.10?exposure_us=500&gain=2``."""

from __future__ import annotations

import threading
import time
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge.errors import CameraFault, ImageError, RdedgeError, UsageError
from rdedge.frames import Frame
from rdedge.sources.base import SourceInfo
from rdedge.sources.clock import DeviceClock
from rdedge.sources.gi_modules import load_gi
from rdedge.sources.uri import Options, device_of

OPTIONS = ("width", "height", "fps", "exposure_us", "gain", "pixel_format", "trigger")
_BUFFERS = 8
_LOWEST_GAIN = -1e3  # dB may be negative
_FREE_RUNNING_TIMEOUT_S = 2.0
_WAKE_S = 0.2  # how soon a wait for a trigger notices that it is closed
_LAST_16_BIT_ID = 65535  # GigE Vision 1.x counts frames from 1 to this
# GenICam names a Bayer pattern by its first row, OpenCV (in these names) by its first two.
_TO_BGR = {
    "Mono8": cv2.COLOR_GRAY2BGR,
    "BGR8": None,
    "RGB8": cv2.COLOR_RGB2BGR,
    "BayerRG8": cv2.COLOR_BayerRGGB2BGR,
    "BayerBG8": cv2.COLOR_BayerBGGR2BGR,
    "BayerGB8": cv2.COLOR_BayerGBRG2BGR,
    "BayerGR8": cv2.COLOR_BayerGRBG2BGR,
}


def settings_of(uri: str) -> tuple[str, Options]:
    """The device's id or address, and its options, whose numbers are numbers. Raises UsageError."""
    device, options = device_of(uri, known=OPTIONS)
    if not device:
        raise UsageError(f"{uri}: no camera", remedy="write gige://ADDRESS or the id that `arv-tool-0.8` lists")
    for name in ("width", "height"):
        options.count(name)
    for name in ("fps", "exposure_us"):
        options.number(name)
    options.number("gain", above=_LOWEST_GAIN)
    return device, options


class AravisCamera:
    """A Camera over one GenICam device; automatic exposure and gain go off where a value is given."""

    def __init__(self, uri: str):
        """Raises UsageError for options the camera does not take, MissingExtraError, CameraFault."""
        self.name = uri
        device, options = settings_of(uri)
        self._trigger = options.text("trigger")
        self._aravis = load_gi("Aravis", "0.8")
        self._error: type[Any] = load_gi("GLib", "2.0").Error
        self._lock = threading.Lock()
        self._is_gone = self._is_closed = False
        self._clock = DeviceClock()
        self._camera: Any = None
        self._stream: Any = None
        self._index = self._lost = 0
        self._last_id: int | None = None
        try:
            self._camera = self._aravis.Camera.new(device)
        except self._error as exc:
            raise self._fault("unplugged", f"cannot be opened ({exc.message})") from exc
        self._handler_id = self._camera.get_device().connect("control-lost", self._on_control_lost)
        try:
            self._configure(options)
            self._stream = self._started()
        except self._error as exc:
            is_refusal = not any(exc.matches(self._aravis.DeviceError.quark(), code) for code in self._link_errors())
            self.close()
            raise self._fault("misconfigured" if is_refusal else "unplugged", exc.message) from exc
        except RdedgeError:
            self.close()
            raise

    @property
    def info(self) -> SourceInfo:
        """See Camera; a frame is lost where the camera's own numbers leave one out."""
        return SourceInfo(size_hw=self._size_hw, fps=self._fps, lost=self._lost, is_triggered=self._trigger is not None)

    @property
    def is_software_triggered(self) -> bool:
        """Whether it waits for ``fire``."""
        return self._trigger == "software"

    def fire(self) -> None:
        """Takes one frame now. Raises CameraFault."""
        try:
            self._camera.software_trigger()
        except self._error as exc:
            raise self._fault("unplugged", f"takes no trigger ({exc.message})") from exc

    def read(self) -> Frame | None:
        """See Camera. By a hardware trigger it waits as long as it takes; a frame's part is then its number."""
        started_s = time.monotonic()
        while True:
            with self._lock:
                if self._is_closed:
                    return None
                if (frame := self._popped()) is not None:
                    return frame
            if self._is_gone:
                raise self._fault("unplugged", "does not answer any more")
            is_waiting = self._trigger is not None and not self.is_software_triggered
            if not is_waiting and time.monotonic() - started_s > _FREE_RUNNING_TIMEOUT_S + 2 / (self._fps or 1.0):
                raise self._fault("silent", "gives no frames")

    def close(self) -> None:
        """See Camera."""
        self._is_closed = True
        if self._lock.acquire(timeout=5 * _WAKE_S):
            try:
                self._let_go()
            finally:
                self._lock.release()

    def _let_go(self) -> None:
        """Stops the camera and gives up its control, which the next program could else not have for seconds.

        Aravis closes a device with its last reference, so none may stay.
        """
        camera, self._camera, self._stream = self._camera, None, None
        if camera is None:
            return
        device = camera.get_device()
        device.disconnect(self._handler_id)
        try:
            if not self._is_gone:
                camera.stop_acquisition()
                if camera.is_gv_device():
                    device.leave_control()
        except self._error:
            self._is_gone = True  # it went away meanwhile, which is as good

    def _configure(self, options: Options) -> None:
        """Sizes first, since rates and exposures depend on them."""
        camera, aravis = self._camera, self._aravis
        x, y, width, height = camera.get_region()
        camera.set_region(x, y, options.count("width") or width, options.count("height") or height)
        self._format = self._chosen_format(options.text("pixel_format"))
        camera.set_pixel_format_from_string(self._format)
        if self._trigger is None:
            camera.clear_triggers()
            if (fps := options.number("fps")) is not None:
                self._check_bounds("fps", fps, camera.get_frame_rate_bounds())
                camera.set_frame_rate(fps)
        else:
            camera.set_trigger("Software" if self.is_software_triggered else self._trigger)
        if (exposure_us := options.number("exposure_us")) is not None:
            if camera.is_exposure_auto_available():
                camera.set_exposure_time_auto(aravis.Auto.OFF)
            self._check_bounds("exposure_us", exposure_us, camera.get_exposure_time_bounds())
            camera.set_exposure_time(exposure_us)
        if (gain := options.number("gain", above=_LOWEST_GAIN)) is not None:
            if camera.is_gain_auto_available():
                camera.set_gain_auto(aravis.Auto.OFF)
            self._check_bounds("gain", gain, camera.get_gain_bounds())
            camera.set_gain(gain)
        _, _, width, height = camera.get_region()
        self._size_hw = height, width
        self._fps = camera.get_frame_rate() if camera.is_frame_rate_available() and self._trigger is None else None

    def _chosen_format(self, wanted: str | None) -> str:
        """The one asked for, else the camera's own where it will do, else its best."""
        offered = self._camera.dup_available_pixel_formats_as_strings()
        usable = [name for name in _TO_BGR if name in offered]
        current = self._camera.get_pixel_format_as_string()
        chosen = wanted or (current if current in usable else next(reversed(usable), None))
        if chosen not in usable:
            raise UsageError(
                f"{self.name}: pixel format {chosen or current}",
                remedy=f"use one of: {', '.join(usable) or 'none fits'}",
            )
        return chosen

    def _check_bounds(self, name: str, value: float, bounds: Any) -> None:
        if not bounds.min <= value <= bounds.max:
            raise UsageError(
                f"{self.name}: {name} is {value:g}", remedy=f"the camera takes {bounds.min:g} to {bounds.max:g}"
            )

    def _started(self) -> Any:
        stream = self._camera.create_stream(None, None)
        if stream is None:
            raise self._fault("unplugged", "gives no stream")
        payload = self._camera.get_payload()
        for _ in range(_BUFFERS):
            stream.push_buffer(self._aravis.Buffer.new_allocate(payload))
        self._camera.start_acquisition()
        return stream

    def _link_errors(self) -> tuple[Any, ...]:
        errors = self._aravis.DeviceError
        return errors.TIMEOUT, errors.NOT_CONNECTED, errors.PROTOCOL_ERROR, errors.TRANSFER_ERROR, errors.NOT_CONTROLLER

    def _popped(self) -> Frame | None:
        """The next frame, or None after a short wait. Raises ImageError."""
        buffer = self._stream.timeout_pop_buffer(round(_WAKE_S * 1e6))
        if buffer is None:
            return None
        arrived_s = time.monotonic()
        try:
            return self._frame(buffer, arrived_s)
        finally:
            self._stream.push_buffer(buffer)

    def _frame(self, buffer: Any, arrived_s: float) -> Frame:
        frame_id = int(buffer.get_frame_id())
        self._count_lost(frame_id)
        if buffer.get_status() != self._aravis.BufferStatus.SUCCESS:
            raise ImageError(
                f"{self.name}: frame {frame_id} is damaged ({buffer.get_status().value_nick})",
                remedy="use jumbo frames and a network card of its own",
            )
        device_s = buffer.get_timestamp() / 1e9
        frame = Frame(
            image_bgr_u8=self._pixels(buffer),
            index=self._index,
            captured_at_s=arrived_s,
            source=self.name,
            part_id=str(frame_id) if self._trigger is not None else None,
            device_timestamp_s=self._clock.to_monotonic_s(device_s, arrived_s) if device_s > 0.0 else None,
        )
        self._index += 1
        return frame

    def _count_lost(self, frame_id: int) -> None:
        """Ids go up by one; 16 bits wide ones start again at 1."""
        if self._last_id is not None:
            gap = frame_id - self._last_id
            if gap < 0:
                gap += _LAST_16_BIT_ID
            self._lost += max(0, gap - 1)
        self._last_id = frame_id

    def _pixels(self, buffer: Any) -> NDArray[np.uint8]:
        """(H, W, 3) BGR, copied out of the buffer, which goes back to the stream."""
        height, width = buffer.get_image_height(), buffer.get_image_width()
        channels = 3 if self._format in ("RGB8", "BGR8") else 1
        data = np.frombuffer(buffer.get_data(), np.uint8)
        if data.size < height * width * channels or height * width == 0:
            raise ImageError(
                f"{self.name}: a frame of {data.size} bytes for {width}x{height}", remedy="check the camera"
            )
        image = data[: height * width * channels].reshape(height, width, channels)
        code = _TO_BGR[self._format]
        converted = image.copy() if code is None else cv2.cvtColor(image, code)
        return converted.astype(np.uint8, copy=False)

    def _on_control_lost(self, *_: object) -> None:
        self._is_gone = True

    def _fault(self, kind: str, text: str) -> CameraFault:
        remedy = "check its power, cable and address, and that no other program uses it"
        if kind == "misconfigured":
            remedy = "see `arv-tool-0.8 features` for what the camera takes"
        return CameraFault(kind, f"{self.name}: {text}", remedy=remedy)
