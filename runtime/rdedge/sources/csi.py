"""A Jetson's CSI cameras, through NVIDIA's ISP: ``csi://0?width=1920&height=1080&fps=30&exposure_us=2000&flip=2``."""

from __future__ import annotations

from rdedge.errors import UsageError
from rdedge.sources.gstreamer import GStreamerCamera
from rdedge.sources.uri import device_of

OPTIONS = ("width", "height", "fps", "exposure_us", "flip")
_FLIPS = range(8)


def open_csi(uri: str) -> GStreamerCamera:
    """Raises UsageError, MissingExtraError, CameraFault."""
    return GStreamerCamera(csi_pipeline(uri), uri)


def csi_pipeline(uri: str) -> str:
    """The pipeline up to BGR in main memory; a size of the sensor's own modes costs no scaling.

    Elements, properties and caps are those of NVIDIA's Jetson Linux Developer Guide, "Accelerated GStreamer"
    (https://docs.nvidia.com/jetson/archives/r35.6.1/DeveloperGuide/SD/Multimedia/AcceleratedGstreamer.html), and of
    `gst-inspect-1.0`: nvarguscamerasrc gives NV12 in NVMM memory and nothing else, takes sensor-id and
    exposuretimerange="lowest highest" in ns (equal: fixed, with the gains left to the ISP); nvvidconv turns by
    flip-method 0 to 7 (2: 180 degrees) and gives BGRx in main memory but no BGR, so videoconvert drops the fourth
    byte. NVIDIA's own programs chain them so:
    https://forums.developer.nvidia.com/t/ros-packages-for-working-with-cameras-on-jetson-nano/163781/11
    """
    sensor, options = device_of(uri, known=OPTIONS)
    if not sensor.isascii() or not sensor.isdigit():
        raise UsageError(f"{uri}: camera {sensor!r}", remedy="write csi://0 for the first camera")
    width, height, fps = options.count("width") or 1920, options.count("height") or 1080, options.count("fps") or 30
    flip = options.number("flip", above=-1.0) or 0
    if flip not in _FLIPS:
        raise UsageError(f"{uri}: flip is {flip:g}", remedy="give nvvidconv's flip-method, 0 to 7; 2 turns by 180")
    exposure_us = options.number("exposure_us")
    exposure = ""
    if exposure_us is not None:
        exposure = f' exposuretimerange="{round(exposure_us * 1e3)} {round(exposure_us * 1e3)}"'
    return (
        f"nvarguscamerasrc sensor-id={int(sensor)}{exposure}"
        f" ! video/x-raw(memory:NVMM),width=(int){width},height=(int){height},format=(string)NV12,"
        f"framerate=(fraction){fps}/1"
        f" ! nvvidconv flip-method={int(flip)} ! video/x-raw,format=(string)BGRx ! videoconvert"
    )
