"""The façade: a bundle opened on an engine, one call a picture."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from rdedge.backends import Backend, BackendName, PipelinedBackend, Prediction, open_backend
from rdedge.bundle import Bundle, open_bundle
from rdedge.contract import Precision
from rdedge.errors import ImageError, RdedgeError, UsageError
from rdedge.frames import Frame, check_image
from rdedge.judge import Verdict, judge
from rdedge.line.debounce import PartVerdict
from rdedge.line.masks import Mask
from rdedge.line.tiles import Tiling, stitch
from rdedge.preprocess import preprocess, region_of_interest
from rdedge.stream import Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Durations of one inspection in milliseconds of a monotonic clock."""

    preprocess_ms: float
    infer_ms: float
    judge_ms: float

    @property
    def total_ms(self) -> float:
        """All stages."""
        return self.preprocess_ms + self.infer_ms + self.judge_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """One judged frame."""

    frame: Frame
    verdict: Verdict
    times: StageTimes
    part: PartVerdict | None = None  # where a K-of-N rule judges parts by several frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What one camera changes of how its pictures are judged; by default nothing.

    ``threshold``: instead of the engine's or the bundle's image threshold. ``tiling``: the picture goes through the
    model in tiles.
    """

    threshold: float | None = None
    min_area_px: int = 0
    mask: Mask | None = None
    tiling: Tiling | None = None


_NO_RULES = Rules()


class Inspector:
    """Judges pictures with one bundle. Used from one thread; a context manager, or call ``close``.

    >>> verdict = Inspector.open("bundle").inspect(image_bgr)
    >>> verdict.is_anomalous, verdict.score, verdict.regions
    """

    def __init__(self, bundle: Bundle, backend: Backend, precision: Precision, threshold: float | None = None):
        if bundle.contract.graph.frame.shape[0] != 1:
            raise UsageError(
                f"{bundle.path}: was exported for batches of {bundle.contract.graph.frame.shape[0]}",
                remedy="export it again for single pictures",
            )
        if threshold is not None and not math.isfinite(threshold):
            raise UsageError(
                f"threshold {threshold} would pass every part or none", remedy="use a number, or leave it out"
            )
        spec = bundle.precision_spec(precision)
        self.bundle = bundle
        self.precision: Precision = precision
        self.backend = backend
        image_threshold, pixel_threshold = backend.thresholds or (spec.image_threshold, spec.pixel_threshold)
        self.threshold = image_threshold.value if threshold is None else threshold
        self._pixel_threshold = pixel_threshold.value
        self._input = bundle.contract.input
        self._pipeline = backend if isinstance(backend, PipelinedBackend) and backend.frames_in_flight > 1 else None
        self._under_way: deque[tuple[Frame, float, float]] = deque()  # with when it was in hand and when preprocessed

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        *,
        backend: BackendName = "onnxruntime",
        precision: Precision = "fp32",
        threshold: float | None = None,
        frames_in_flight: int = 1,
    ) -> Inspector:
        """Verify and load a bundle. ``threshold`` overrides the engine's or the contract's image threshold.

        ``frames_in_flight`` 2 is for ``inspect_stream``.

        Raises BundleError, BackendError, MissingExtraError, UsageError.
        """
        opened = open_bundle(bundle)
        engine = open_backend(opened, backend=backend, precision=precision, frames_in_flight=frames_in_flight)
        try:
            return cls(opened, engine, precision, threshold)
        except BaseException:
            engine.close()
            raise

    def inspect(self, image_bgr_u8: NDArray[np.uint8]) -> Verdict:
        """A picture (H, W, 3) uint8 in BGR order, any size -> Verdict. Raises ImageError, BackendError."""
        check_image(image_bgr_u8, "picture")
        return self._judge(image_bgr_u8)[0]

    def inspect_frame(self, frame: Frame, rules: Rules = _NO_RULES) -> Inspection:
        """The same for a frame of a source, by the camera's rules, with times; an error names the frame's source."""
        try:
            verdict, times = self._judge(frame.image_bgr_u8, rules)
        except ImageError as exc:
            raise ImageError(f"{frame.source}: {exc.problem}", remedy=exc.remedy) from exc
        return Inspection(frame=frame, verdict=verdict, times=times)

    def inspect_stream(self, stream: Stream) -> Iterator[Inspection]:
        """Verdicts of a stream's frames, in order.

        With two frames in flight the next frame is put under way before the last one's verdict is waited for, but only
        where it is here already: the verdict of a lone part never waits for the next part. Raises what
        ``inspect_frame`` and the stream raise, after the verdicts of the frames before; a frame that is under way then
        comes first in the next call.
        """
        if self._pipeline is None:
            yield from map(self.inspect_frame, stream)
            return
        pipeline = self._pipeline
        for frame in stream:
            try:
                self._start(pipeline, frame)
            except RdedgeError:
                while self._under_way:
                    yield self._finish(pipeline)
                raise
            while self._under_way and (len(self._under_way) == pipeline.frames_in_flight or not stream.has_frame):
                yield self._finish(pipeline)
        while self._under_way:  # the stream was closed meanwhile
            yield self._finish(pipeline)

    def _start(self, pipeline: PipelinedBackend, frame: Frame) -> None:
        started = time.perf_counter()
        try:
            frame_u8 = preprocess(frame.image_bgr_u8, self._input)
        except ImageError as exc:
            raise ImageError(f"{frame.source}: {exc.problem}", remedy=exc.remedy) from exc
        preprocessed = time.perf_counter()
        pipeline.start(frame_u8)
        self._under_way.append((frame, started, preprocessed))

    def _finish(self, pipeline: PipelinedBackend) -> Inspection:
        frame, started, preprocessed = self._under_way[0]
        try:
            prediction = pipeline.finish()
        finally:
            if len(self._under_way) > pipeline.under_way:  # a call out of turn leaves the frame under way
                self._under_way.popleft()
        verdict, times = self._conclude(prediction, frame.image_bgr_u8, started, preprocessed, _NO_RULES)
        return Inspection(frame=frame, verdict=verdict, times=times)

    def _judge(self, image_bgr_u8: NDArray[np.uint8], rules: Rules = _NO_RULES) -> tuple[Verdict, StageTimes]:
        if rules.tiling is not None:
            return self._judge_tiles(image_bgr_u8, rules, rules.tiling)
        started = time.perf_counter()
        frame_u8 = preprocess(image_bgr_u8, self._input)
        preprocessed = time.perf_counter()
        return self._conclude(self.backend.infer(frame_u8), image_bgr_u8, started, preprocessed, rules)

    def _conclude(
        self,
        prediction: Prediction,
        image_bgr_u8: NDArray[np.uint8],
        started: float,
        preprocessed: float,
        rules: Rules,
    ) -> tuple[Verdict, StageTimes]:
        inferred = time.perf_counter()
        shown_xywh = region_of_interest(image_bgr_u8.shape[:2], self._input)
        verdict = self._verdict(
            prediction.anomaly_map[0, 0], float(prediction.score[0]), image_bgr_u8, shown_xywh, rules
        )
        judged = time.perf_counter()
        times = StageTimes(
            preprocess_ms=(preprocessed - started) * 1e3,
            infer_ms=(inferred - preprocessed) * 1e3,
            judge_ms=(judged - inferred) * 1e3,
        )
        return verdict, times

    def _judge_tiles(self, image_bgr_u8: NDArray[np.uint8], rules: Rules, tiling: Tiling) -> tuple[Verdict, StageTimes]:
        """Tile by tile through the model, judged as one picture."""
        source_hw = image_bgr_u8.shape[0], image_bgr_u8.shape[1]
        boxes = tiling.boxes(source_hw)
        maps = []
        preprocess_s = infer_s = 0.0
        for x, y, w, h in boxes:
            started = time.perf_counter()
            frame_u8 = preprocess(image_bgr_u8[y : y + h, x : x + w], self._input)
            preprocessed = time.perf_counter()
            maps.append(self.backend.infer(frame_u8).anomaly_map[0, 0])
            preprocess_s += preprocessed - started
            infer_s += time.perf_counter() - preprocessed
        started = time.perf_counter()
        whole = stitch(maps, boxes, source_hw)
        shown_xywh = (0, 0, source_hw[1], source_hw[0])
        verdict = self._verdict(whole, float(whole.max()), image_bgr_u8, shown_xywh, rules)
        judge_ms = (time.perf_counter() - started) * 1e3
        return verdict, StageTimes(preprocess_ms=preprocess_s * 1e3, infer_ms=infer_s * 1e3, judge_ms=judge_ms)

    def _verdict(
        self,
        anomaly_map: NDArray[np.float32],
        score: float,
        image_bgr_u8: NDArray[np.uint8],
        shown_xywh: tuple[int, int, int, int],
        rules: Rules,
    ) -> Verdict:
        keep = None
        if rules.mask is not None:
            keep = rules.mask.keep(image_bgr_u8.shape[:2], shown_xywh, anomaly_map.shape)
        return judge(
            anomaly_map,
            score,
            image_threshold=self.threshold if rules.threshold is None else rules.threshold,
            pixel_threshold=self._pixel_threshold,
            roi_xywh=shown_xywh,
            keep=keep,
            min_area_px=rules.min_area_px,
        )

    def close(self) -> None:
        """Free the engine; may be called twice."""
        self.backend.close()

    def __enter__(self) -> Inspector:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
