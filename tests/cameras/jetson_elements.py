"""Substitutes for a Jetson's two elements of a CSI pipeline: the same names, properties and caps, so that the pipeline
runs as it is written. Registered for a whole process, so a test runs this file in one of its own:

    python jetson_elements.py "csi://1?width=640&..."

opens the address as the line does and prints as JSON: size, rate, the mean colour (BGR) of each quarter of the picture,
and which properties the elements were given. As `gst-inspect-1.0` shows them on a Jetson, the camera gives NV12 in NVMM
memory and nothing else, and the converter does not give BGR.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import cv2
import gi
import numpy as np

gi.require_version("Gst", "1.0")
gi.require_version("GstBase", "1.0")
from gi.repository import GObject, Gst, GstBase  # noqa: E402

Gst.init(None)
_SIZES = "width=[1,2147483647],height=[1,2147483647],framerate=[0/1,2147483647/1]"
NV12_IN_NVMM = f"video/x-raw(memory:NVMM),format=(string)NV12,{_SIZES}"
BGRX = f"video/x-raw,format=(string)BGRx,{_SIZES}"
QUARTERS_BGR = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128))  # left and right above, then below
FLIPS = {0: lambda image: image, 2: lambda image: image[::-1, ::-1]}  # of nvvidconv's flip-method
told: dict[str, Any] = {}


def quarters(height: int, width: int) -> np.ndarray:
    """(H, W, 3) BGR."""
    image = np.zeros((height, width, 3), np.uint8)
    for index, colour in enumerate(QUARTERS_BGR):
        top, left = index // 2 * (height // 2), index % 2 * (width // 2)
        image[top:, left:] = colour
    return image


class Camera(GstBase.BaseSrc):
    sensor_id = GObject.Property(type=int, default=0)
    exposuretimerange = GObject.Property(type=str, default=None)

    def __init__(self) -> None:
        super().__init__()
        self.set_live(True)
        self.set_format(Gst.Format.TIME)
        self._count = 0

    def do_set_caps(self, caps: Gst.Caps) -> bool:
        structure = caps.get_structure(0)
        height, width = structure.get_int("height")[1], structure.get_int("width")[1]
        _, rate, per = structure.get_fraction("framerate")
        self._duration_ns = Gst.SECOND * per // rate
        planes = cv2.cvtColor(quarters(height, width), cv2.COLOR_BGR2YUV_I420).ravel()
        luma, chroma = planes[: height * width], planes[height * width :].reshape(2, -1)
        self._nv12 = luma.tobytes() + chroma.T.tobytes()
        told.update(sensor_id=self.sensor_id, exposure=self.exposuretimerange)
        return True

    def do_create(self, offset: int, size: int, given: Any) -> tuple[Gst.FlowReturn, Gst.Buffer]:
        buffer = Gst.Buffer.new_wrapped(self._nv12)
        buffer.pts, buffer.duration = self._count * self._duration_ns, self._duration_ns
        self._count += 1
        return Gst.FlowReturn.OK, buffer


class Converter(GstBase.BaseTransform):
    flip_method = GObject.Property(type=int, default=0)

    def do_transform_caps(self, direction: Gst.PadDirection, caps: Gst.Caps, wanted: Gst.Caps | None) -> Gst.Caps:
        text = caps.to_string()  # sizes and rates stay; as text, since plain PyGObject does not know GStreamer's ranges
        if direction == Gst.PadDirection.SINK:
            text = text.replace("(memory:NVMM)", "").replace("NV12", "BGRx")
        else:
            text = text.replace("video/x-raw", "video/x-raw(memory:NVMM)").replace("BGRx", "NV12")
        result = Gst.Caps.from_string(text)
        return result if wanted is None else wanted.intersect(result)

    def do_get_unit_size(self, caps: Gst.Caps) -> tuple[bool, int]:
        structure = caps.get_structure(0)
        pixels = structure.get_int("height")[1] * structure.get_int("width")[1]
        return True, pixels * 4 if structure.get_string("format") == "BGRx" else pixels * 3 // 2

    def do_set_caps(self, incaps: Gst.Caps, outcaps: Gst.Caps) -> bool:
        structure = incaps.get_structure(0)
        self._size_hw = structure.get_int("height")[1], structure.get_int("width")[1]
        told.update(flip=self.flip_method)
        return True

    def do_transform(self, given: Gst.Buffer, made: Gst.Buffer) -> Gst.FlowReturn:
        height, width = self._size_hw
        nv12 = np.frombuffer(given.extract_dup(0, given.get_size()), np.uint8).reshape(height * 3 // 2, width)
        image = FLIPS[self.flip_method](cv2.cvtColor(nv12, cv2.COLOR_YUV2BGR_NV12))
        made.fill(0, np.ascontiguousarray(cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)).tobytes())
        return Gst.FlowReturn.OK


def register(name: str, element: type[Gst.Element], pads: dict[Gst.PadDirection, str]) -> None:
    element.set_metadata(name, "Video", "a substitute", "rdedge's tests")
    for direction, caps in pads.items():
        pad_name = "src" if direction == Gst.PadDirection.SRC else "sink"
        element.add_pad_template(
            Gst.PadTemplate.new(pad_name, direction, Gst.PadPresence.ALWAYS, Gst.Caps.from_string(caps))
        )
    GObject.type_register(element)
    assert Gst.Element.register(None, name, Gst.Rank.NONE, element)


register("nvarguscamerasrc", Camera, {Gst.PadDirection.SRC: NV12_IN_NVMM})
register("nvvidconv", Converter, {Gst.PadDirection.SINK: NV12_IN_NVMM, Gst.PadDirection.SRC: BGRX})


def main(uri: str) -> None:
    from rdedge.sources.csi import open_csi

    camera = open_csi(uri)
    frames = [camera.read() for _ in range(3)]
    info = camera.info
    camera.close()
    image = frames[-1].image_bgr_u8
    height, width = image.shape[:2]
    means = [
        image[top : top + height // 2, left : left + width // 2].mean(axis=(0, 1)).round().astype(int).tolist()
        for top in (0, height // 2)
        for left in (0, width // 2)
    ]
    print(json.dumps({"size_hw": info.size_hw, "fps": info.fps, "quarters_bgr": means, **told}))


if __name__ == "__main__":
    main(sys.argv[1])
