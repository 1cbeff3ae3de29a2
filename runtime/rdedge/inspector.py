"""The façade: a bundle opened on an engine, one call a picture."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from rdedge.backends import Backend, BackendName, PipelinedBackend, Prediction, batches, infer_all, open_backend
from rdedge.bundle import Bundle, open_bundle
from rdedge.contract import Precision
from rdedge.errors import ImageError, RdedgeError, UsageError
from rdedge.frames import Frame
from rdedge.judge import Verdict, judge
from rdedge.line.debounce import PartVerdict
from rdedge.line.masks import Mask
from rdedge.line.tiles import Tiling, stitch, stitched_hw
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A frame as the engine takes it: ``frames_u8`` (1, h, w, 3), or one for each tile. Times: ``perf_counter``."""

    frame: Frame
    rules: Rules
    frames_u8: NDArray[np.uint8]
    shown_xywh: tuple[int, int, int, int]  # of the picture, by the model's map of it
    keep: NDArray[np.bool_] | None  # of the map: what is judged; None: all
    began_s: float
    ended_s: float


class Inspector:
    """Judges pictures with one bundle. Used from one thread; a context manager, or call ``close``.

    >>> verdict = Inspector.open("bundle").inspect(image_bgr)
    >>> verdict.is_anomalous, verdict.score, verdict.regions
    """

    def __init__(self, bundle: Bundle, backend: Backend, precision: Precision, threshold: float | None = None):
        if threshold is not None and not math.isfinite(threshold):
            raise UsageError(
                f"threshold {threshold} would pass every part or none", remedy="use a number, or leave it out"
            )
        spec = bundle.precision_spec(precision)
        self.bundle = bundle
        self.precision: Precision = precision
        self.backend = backend
        self.batch = bundle.contract.graph.batch  # frames of one engine call
        image_threshold, pixel_threshold = backend.thresholds or (spec.image_threshold, spec.pixel_threshold)
        self.threshold = image_threshold.value if threshold is None else threshold
        self._pixel_threshold = pixel_threshold.value
        self._input = bundle.contract.input
        self._pipeline = backend if isinstance(backend, PipelinedBackend) and backend.frames_in_flight > 1 else None
        self._under_way: deque[tuple[Sequence[Prepared], Prediction | None]] = deque()  # None: the engine has it

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

        ``frames_in_flight`` 2 is for ``start`` and ``finish``, and ``inspect_stream``, which uses them.

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
        frame = Frame(image_bgr_u8=image_bgr_u8, index=0, captured_at_s=0.0, source="picture")
        return self._judge(self._prepare(frame, _NO_RULES)).verdict

    def inspect_frame(self, frame: Frame, rules: Rules = _NO_RULES) -> Inspection:
        """The same for a frame of a source, by the camera's rules, with times; an error names the frame's source."""
        return self._judge(self.prepare(frame, rules))

    def inspect_stream(self, stream: Stream) -> Iterator[Inspection]:
        """Verdicts of a stream's frames, in order, a frame an engine call; rdedge.line.loop serves lines.

        With two frames in flight the next frame is put under way before the last one's verdict is waited for, but only
        where it is here already: the verdict of a lone part never waits for the next part. Raises what
        ``inspect_frame`` and the stream raise, after the verdicts of the frames before; a frame that is under way then
        comes first in the next call.
        """
        for frame in stream:
            try:
                self.start([self.prepare(frame)])
            except RdedgeError:
                while self.under_way:
                    yield from self.finish()
                raise
            while self.under_way and (self.is_full or not stream.has_frame):
                yield from self.finish()
        while self.under_way:  # the stream was closed meanwhile
            yield from self.finish()

    def prepare(self, frame: Frame, rules: Rules = _NO_RULES) -> Prepared:
        """What the engine needs of a frame. Raises ImageError where it cannot be judged."""
        try:
            return self._prepare(frame, rules)
        except ImageError as exc:
            raise ImageError(f"{frame.source}: {exc.problem}", remedy=exc.remedy) from exc

    @property
    def under_way(self) -> int:
        """Batches started and not finished."""
        return len(self._under_way)

    @property
    def is_full(self) -> bool:
        """Whether one must be finished before the next can start."""
        return self.under_way >= (1 if self._pipeline is None else self._pipeline.frames_in_flight)

    def start(self, prepared: Sequence[Prepared]) -> None:
        """Put frames of any cameras under way together. Raises BackendError: then they are not, those before are.

        More than ``batch``, as tiles may be, take several engine calls, for which no other frame may be under way.
        """
        frames_u8 = prepared[0].frames_u8 if len(prepared) == 1 else np.concatenate([p.frames_u8 for p in prepared])
        answer = None
        if self._pipeline is None or len(frames_u8) > self.batch:
            answer = infer_all(self.backend, frames_u8, self.batch)
        else:
            ((batch_u8, _),) = batches(frames_u8, self.batch)
            self._pipeline.start(batch_u8)
        self._under_way.append((prepared, answer))

    def finish(self) -> Iterator[Inspection]:
        """Wait for the frames started first: their verdicts, in order. Raises BackendError: they are gone then."""
        prepared, answer = self._under_way[0]
        if answer is not None or self._pipeline is None:
            self._under_way.popleft()
        else:
            try:
                answer = self._pipeline.finish()
            finally:
                started = sum(held is None for _, held in self._under_way)
                if started > self._pipeline.under_way:  # a call out of turn leaves the frames under way
                    self._under_way.popleft()
        assert answer is not None
        yield from self._conclude(prepared, answer)

    def _prepare(self, frame: Frame, rules: Rules) -> Prepared:
        began_s = time.perf_counter()
        image_bgr_u8 = frame.image_bgr_u8
        height, width = source_hw = image_bgr_u8.shape[0], image_bgr_u8.shape[1]
        if rules.tiling is None:
            shown_xywh, map_hw = region_of_interest(source_hw, self._input), self._input.size_hw
            frames_u8 = preprocess(image_bgr_u8, self._input)
        else:
            shown_xywh = 0, 0, width, height
            map_hw = stitched_hw(source_hw, rules.tiling.tile_wh, self._input.size_hw)
            boxes = rules.tiling.boxes(source_hw)
            tiles = [preprocess(image_bgr_u8[y : y + h, x : x + w], self._input) for x, y, w, h in boxes]
            frames_u8 = np.concatenate(tiles)
        return Prepared(
            frame=frame,
            rules=rules,
            frames_u8=frames_u8,
            shown_xywh=shown_xywh,
            keep=None if rules.mask is None else rules.mask.keep(source_hw, shown_xywh, map_hw),
            began_s=began_s,
            ended_s=time.perf_counter(),
        )

    def _judge(self, prepared: Prepared) -> Inspection:
        """Alone, while nothing is under way."""
        (inspection,) = self._conclude([prepared], infer_all(self.backend, prepared.frames_u8, self.batch))
        return inspection

    def _conclude(self, prepared: Sequence[Prepared], answer: Prediction) -> Iterator[Inspection]:
        """A batch's answers to its frames, in order; what one waits for the others' verdicts counts as inference."""
        first = 0
        for each in prepared:
            inferred_s = time.perf_counter()
            after = first + len(each.frames_u8)
            verdict = self._verdict(each, answer.anomaly_map[first:after, 0], float(answer.score[first]))
            times = StageTimes(
                preprocess_ms=(each.ended_s - each.began_s) * 1e3,
                infer_ms=(inferred_s - each.ended_s) * 1e3,
                judge_ms=(time.perf_counter() - inferred_s) * 1e3,
            )
            yield Inspection(frame=each.frame, verdict=verdict, times=times)
            first = after

    def _verdict(self, prepared: Prepared, maps: NDArray[np.float32], score: float) -> Verdict:
        """``maps`` (1, h, w) with its score, or one of each tile."""
        rules = prepared.rules
        if rules.tiling is not None:
            source_hw = prepared.frame.image_bgr_u8.shape[0], prepared.frame.image_bgr_u8.shape[1]
            anomaly_map = stitch(list(maps), rules.tiling.boxes(source_hw), source_hw)
            score = float(anomaly_map.max())
        else:  # who keeps a verdict must not keep the maps of a whole batch
            anomaly_map = maps[0] if self.batch == 1 else maps[0].copy()
        return judge(
            anomaly_map,
            score,
            image_threshold=self.threshold if rules.threshold is None else rules.threshold,
            pixel_threshold=self._pixel_threshold,
            roi_xywh=prepared.shown_xywh,
            keep=prepared.keep,
            min_area_px=rules.min_area_px,
        )

    def close(self) -> None:
        """Free the engine; may be called twice."""
        self.backend.close()

    def __enter__(self) -> Inspector:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
