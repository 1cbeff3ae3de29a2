"""Pictures of rejected parts, and of some good ones, with heat map, boxes and score."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge.atomic import write_bytes
from rdedge.errors import SinkError
from rdedge.frames import Frame
from rdedge.inspector import Inspection
from rdedge.judge import Verdict
from rdedge.sinks.budget import GOOD_FOLDER, DiskBudget
from rdedge.sinks.lines import syncing
from rdedge.text import printable

_MAX_OPACITY = 0.4
_MAX_STEM_BYTES = 120
_RED_BGR = (40, 40, 230)


class OverlaySink:
    """Writes ``<index>_<name>.jpg`` for every anomalous part, and some good ones into the folder ``good`` beside."""

    def __init__(
        self,
        folder: Path,
        roi_xywh: tuple[int, int, int, int] | None,
        *,
        good_every: int = 0,
        budget: DiskBudget | None = None,
    ):
        """``roi_xywh``: the part of the picture that the anomaly map covers; None: all of it.

        ``good_every``: good parts whose number is a multiple of it get a picture; 0: none. ``folder`` must lie in that
        of the budget, and be this run's alone.
        """
        self._folder = folder
        self._roi_xywh = roi_xywh
        self._good_every = good_every
        self._budget = budget

    def wants(self, inspection: Inspection) -> bool:
        """Whether this part gets a picture."""
        if inspection.verdict.is_anomalous:
            return True
        return self._good_every > 0 and inspection.frame.index % self._good_every == 0

    def write(self, inspection: Inspection) -> None:
        """See Sink.write."""
        if not self.wants(inspection):
            return
        name = _file_name(inspection.frame)
        folder = self._folder if inspection.verdict.is_anomalous else self._folder / GOOD_FOLDER
        picture = draw_overlay(inspection.frame.image_bgr_u8, inspection.verdict, self._roi_xywh)
        data = _as_jpeg(picture, name)
        try:
            if self._budget is not None:
                self._budget.make_room(len(data))
            folder.mkdir(parents=True, exist_ok=True)
            with syncing():
                write_bytes(folder / name, data)
            if self._budget is not None:
                self._budget.add(folder / name)
        except OSError as exc:
            raise SinkError(
                f"{folder / name}: cannot be written ({exc.strerror})",
                remedy="check the disk's space and permissions",
            ) from exc

    def close(self) -> None:
        """See Sink.close."""


def _file_name(frame: Frame) -> str:
    """File systems take 255 bytes; the number alone makes it unique."""
    stem = printable(Path(frame.source).stem).encode()[:_MAX_STEM_BYTES].decode(errors="ignore")
    return f"{frame.index:06d}_{stem}.jpg"


def _as_jpeg(picture: NDArray[np.uint8], name: str) -> bytes:
    with suppress(cv2.error):  # OpenCV 4 raises, OpenCV 5 answers False
        ok, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
        if ok:
            return data.tobytes()
    height, width = picture.shape[:2]
    raise SinkError(
        f"{name}: a picture of {width}x{height} cannot be a JPEG, which ends at 65500 pixels",
        remedy="split it, or run without --out",
    )


def heat_colours(anomaly_map: NDArray[np.float32], threshold: float) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Colours (h, w, 3) BGR and opacity (h, w) in 0..1; the scale is fixed by the threshold, so pictures compare.

    Nothing is shown below half the threshold; full colour is reached at one and a half times the threshold.
    """
    level = np.clip((anomaly_map - 0.5 * threshold) / max(threshold, 1e-12), 0.0, 1.0).astype(np.float32)
    colours = cv2.applyColorMap((level * 255).astype(np.uint8), cv2.COLORMAP_TURBO)
    return colours.astype(np.uint8, copy=False), level * _MAX_OPACITY


def draw_overlay(
    image_bgr_u8: NDArray[np.uint8], verdict: Verdict, roi_xywh: tuple[int, int, int, int] | None
) -> NDArray[np.uint8]:
    """The picture (H, W, 3) with the heat map over its region of interest, boxes of regions and a caption."""
    picture: NDArray[np.uint8] = image_bgr_u8.copy()
    x, y, w, h = roi_xywh or (0, 0, picture.shape[1], picture.shape[0])
    colours, opacity = heat_colours(verdict.anomaly_map, verdict.threshold)
    colours_full = cv2.resize(colours, (w, h), interpolation=cv2.INTER_LINEAR)
    opacity_full = cv2.resize(opacity, (w, h), interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)
    window = picture[y : y + h, x : x + w]
    window[:] = cv2.blendLinear(window, colours_full, 1.0 - opacity_full, opacity_full)
    line_px = max(1, picture.shape[1] // 800)
    for region in verdict.regions:
        left, top, width, height = region.box_xywh
        cv2.rectangle(picture, (left, top), (left + width - 1, top + height - 1), _RED_BGR, line_px)
    _draw_caption(picture, verdict, line_px)
    return picture


def _draw_caption(picture: NDArray[np.uint8], verdict: Verdict, line_px: int) -> None:
    """White on a black bar: an outline of the letters fails in OpenCV 5, whose bold letters are wider."""
    word = "REJECT" if verdict.is_anomalous else "good"
    text = f"{word}  {verdict.score:.4g} / {verdict.threshold:.4g}"
    scale = max(0.4, picture.shape[1] / 800)
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, line_px)
    margin = height // 2
    cv2.rectangle(picture, (0, 0), (width + 2 * margin, height + below + 2 * margin), (0, 0, 0), cv2.FILLED)
    origin = (margin, height + margin)
    cv2.putText(picture, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), line_px, cv2.LINE_AA)
