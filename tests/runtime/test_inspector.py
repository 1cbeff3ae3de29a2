"""One call a picture: the façade gives the verdict that preprocess, engine and judge give, with times."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rdedge.backends import Prediction
from rdedge.backends.fake import FakeBackend
from rdedge.bundle import open_bundle
from rdedge.contract import GraphSpec
from rdedge.errors import BackendError, BundleError, ImageError, UsageError
from rdedge.frames import Frame
from rdedge.inspector import Inspector, Rules
from rdedge.line.tiles import Tiling
from rdedge.stream import Stream

Draw = Callable[..., NDArray[np.uint8]]
WAIT_S = 60.0


@pytest.mark.parametrize("backend", ["onnxruntime", "fake"])
def test_good_is_good_and_bad_is_bad(bundle: Path, draw_part: Draw, backend: str) -> None:
    with Inspector.open(bundle, backend=backend) as inspector:  # type: ignore[arg-type]
        good, bad = inspector.inspect(draw_part()), inspector.inspect(draw_part((16, 24)))
    assert not good.is_anomalous and good.score == pytest.approx(0.2) and good.regions == ()
    assert bad.is_anomalous and bad.score == pytest.approx(0.8) and bad.threshold == 0.5
    (region,) = bad.regions
    assert (region.box_xywh, region.area_px) == ((16, 24, 8, 8), 64)
    assert bad.anomaly_map.shape == (48, 64)


def test_boxes_are_in_the_cameras_pixels(write_bundle: Callable[..., Path], draw_part: Draw) -> None:
    with Inspector.open(write_bundle(roi_xywh=(100, 50, 128, 96))) as inspector:
        (region,) = inspector.inspect(draw_part((140, 60), size_hw=(200, 300))).regions
    assert region.box_xywh == (140, 60, 8, 8)


def test_a_frame_keeps_its_origin_and_gets_times(bundle: Path, draw_part: Draw) -> None:
    frame = Frame(image_bgr_u8=draw_part(), index=7, captured_at_s=12.5, source="a.png")
    with Inspector.open(bundle) as inspector:
        inspection = inspector.inspect_frame(frame)
    assert inspection.frame is frame
    times = inspection.times
    assert min(times.preprocess_ms, times.infer_ms, times.judge_ms) > 0
    assert times.total_ms == times.preprocess_ms + times.infer_ms + times.judge_ms


def test_another_threshold_replaces_the_bundles(bundle: Path, draw_part: Draw) -> None:
    with Inspector.open(bundle, threshold=0.9) as inspector:
        verdict = inspector.inspect(draw_part((16, 24)))
    assert not verdict.is_anomalous and verdict.threshold == 0.9
    with Inspector.open(bundle, threshold=0.0) as inspector:
        assert inspector.inspect(draw_part()).is_anomalous


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), float("-inf")])
def test_a_threshold_that_passes_every_part_is_refused(bundle: Path, graph: GraphSpec, threshold: float) -> None:
    with pytest.raises(UsageError, match=r"threshold .* would pass every part or none; use a number"):
        Inspector(open_bundle(bundle), FakeBackend(graph), "fp32", threshold)
    with pytest.raises(UsageError):
        Inspector.open(bundle, threshold=threshold)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_bundle_for_batches_judges_single_pictures(write_bundle: Callable[..., Path], in_flight: int) -> None:
    pictures = [flat(level) for level in range(0, 250, 25)]
    with (
        Inspector.open(write_bundle(batch=3), backend="fake", frames_in_flight=in_flight) as inspector,
        Inspector.open(write_bundle("single"), backend="fake") as alone,
    ):
        assert inspector.batch == 3
        expected = [alone.inspect(picture) for picture in pictures]
        for got in (
            [inspector.inspect(picture) for picture in pictures],
            [inspection.verdict for inspection in inspector.inspect_stream(all_here(pictures))],
        ):
            assert [verdict.score for verdict in got] == [verdict.score for verdict in expected]
            assert all(np.array_equal(a.anomaly_map, b.anomaly_map) for a, b in zip(got, expected, strict=True))
            assert all(verdict.anomaly_map.base is None for verdict in got), "or it keeps the whole batch's maps"


@pytest.mark.parametrize("backend", ["onnxruntime", "fake"])
def test_frames_of_a_batch_keep_their_own_answers_and_rules(write_bundle: Callable[..., Path], backend: str) -> None:
    levels = (10, 200, 90)
    rules = [Rules(), Rules(threshold=0.1), Rules(min_area_px=10_000)]
    with Inspector.open(write_bundle(batch=3), backend=backend) as inspector:  # type: ignore[arg-type]
        frames = [
            Frame(image_bgr_u8=flat(level), index=i, captured_at_s=0.0, source="x") for i, level in enumerate(levels)
        ]
        inspector.start([inspector.prepare(frame, rule) for frame, rule in zip(frames, rules, strict=True)])
        assert inspector.under_way == 1 and inspector.is_full
        inspections = list(inspector.finish())
        assert inspector.under_way == 0
    assert [inspection.frame.index for inspection in inspections] == [0, 1, 2]
    assert [i.verdict.score for i in inspections] == [pytest.approx(1 - level / 255) for level in levels]
    assert [i.verdict.is_anomalous for i in inspections] == [True, True, False], "each by its own rules"
    assert all(min(i.times.preprocess_ms, i.times.infer_ms, i.times.judge_ms) > 0 for i in inspections)


@pytest.mark.parametrize("batch", [1, 2, 4, 100])
def test_tiles_fill_batches(write_bundle: Callable[..., Path], draw_part: Draw, batch: int) -> None:
    rules = Rules(tiling=Tiling(tile_wh=(64, 48), overlap_px=16))
    picture = draw_part((84, 60), size_hw=(144, 176))
    frame = Frame(image_bgr_u8=picture, index=0, captured_at_s=0.0, source="x")
    with Inspector.open(write_bundle(batch=batch), backend="fake") as inspector:
        verdict = inspector.inspect_frame(frame, rules).verdict
    assert verdict.anomaly_map.shape == (144, 176)
    assert [(r.box_xywh, r.area_px) for r in verdict.regions] == [((84, 60, 8, 8), 64)]


def test_a_picture_that_is_none_is_refused(bundle: Path) -> None:
    with Inspector.open(bundle) as inspector, pytest.raises(ImageError, match="picture: expected a picture uint8"):
        inspector.inspect(None)  # type: ignore[arg-type]


def test_a_closed_inspector_says_so(bundle: Path, draw_part: Draw) -> None:
    inspector = Inspector.open(bundle)
    inspector.close()
    inspector.close()
    with pytest.raises(BackendError, match="closed"):
        inspector.inspect(draw_part())


def test_a_broken_bundle_is_not_opened(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="altered or incomplete"):
        Inspector.open(bundle)


class Parts:
    """A source of these pictures."""

    name = "parts"
    skipped = ()

    def __init__(self, pictures: Iterable[NDArray[np.uint8]]):
        self._pictures = pictures

    def __iter__(self) -> Iterator[Frame]:
        for index, picture in enumerate(self._pictures):
            yield Frame(image_bgr_u8=picture, index=index, captured_at_s=0.0, source=f"{index}.png")

    def close(self) -> None:
        pass


class Watched(FakeBackend):
    """Counts the frames under way, and fails on the answers asked for."""

    def __init__(self, graph: GraphSpec, *fails_on: int):
        super().__init__(graph, frames_in_flight=2)
        self.most_under_way = 0
        self._fails_on, self._finished = fails_on, 0

    def start(self, frame_u8: NDArray[np.uint8]) -> None:
        super().start(frame_u8)
        self.most_under_way = max(self.most_under_way, self.under_way)

    def finish(self) -> Prediction:
        answer = super().finish()
        self._finished += 1
        if self._finished - 1 in self._fails_on:
            raise BackendError(f"frame {self._finished - 1} failed", remedy="-")
        return answer


def all_here(pictures: list[NDArray[np.uint8]]) -> Stream:
    return Stream(Parts(pictures), queue_size=len(pictures) + 1)


def flat(level: int) -> NDArray[np.uint8]:
    return np.full((48, 64, 3), level, np.uint8)


def test_two_in_flight_give_the_verdicts_of_one(bundle: Path, graph: GraphSpec) -> None:
    backend = Watched(graph)
    pictures = [flat(level) for level in range(250)]
    with Inspector(open_bundle(bundle), backend, "fp32") as inspector, Inspector.open(bundle, backend="fake") as alone:
        inspections = list(inspector.inspect_stream(all_here(pictures)))
        expected = [alone.inspect(picture).score for picture in pictures]
    assert [inspection.verdict.score for inspection in inspections] == expected
    assert [inspection.frame.index for inspection in inspections] == list(range(250))
    assert backend.most_under_way == 2 and backend.under_way == 0
    assert all(inspection.times.infer_ms > 0 for inspection in inspections)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_lone_part_does_not_wait_for_the_next(bundle: Path, in_flight: int) -> None:
    judged = threading.Semaphore(0)

    def trigger() -> Iterator[NDArray[np.uint8]]:
        for level in (10, 20, 30):
            yield flat(level)
            assert judged.acquire(timeout=WAIT_S), "the verdict waits for a part that has not come"

    scores = []
    with Inspector.open(bundle, backend="fake", frames_in_flight=in_flight) as inspector:
        for inspection in inspector.inspect_stream(Stream(Parts(trigger()))):
            scores.append(inspection.verdict.score)
            judged.release()
    assert scores == [pytest.approx(1 - level / 255) for level in (10, 20, 30)]


def test_a_bad_picture_is_told_after_the_verdicts_before_it(write_bundle: Callable[..., Path]) -> None:
    pictures = [flat(10), flat(20), flat(30)[:20], flat(40)]
    got: list[int] = []
    with (
        Inspector.open(write_bundle(roi_xywh=(0, 0, 64, 48)), backend="fake", frames_in_flight=2) as inspector,
        pytest.raises(ImageError, match=r"2\.png: .*the region of interest"),
    ):
        for inspection in inspector.inspect_stream(all_here(pictures)):
            got.append(inspection.frame.index)
    assert got == [0, 1]


def test_a_failed_frame_neither_loses_nor_mislabels_the_next(bundle: Path, graph: GraphSpec) -> None:
    backend = Watched(graph, 1)
    pictures = [flat(level) for level in (10, 20, 30)]
    seen: list[tuple[str, float]] = []
    with Inspector(open_bundle(bundle), backend, "fp32") as inspector:
        stream = all_here(pictures)
        with pytest.raises(BackendError, match="frame 1 failed"):
            for inspection in inspector.inspect_stream(stream):
                seen.append((inspection.frame.source, inspection.verdict.score))
        stream.close()
        for inspection in inspector.inspect_stream(all_here([flat(50)])):
            seen.append((inspection.frame.source, inspection.verdict.score))
    levels = {"0.png": (10, 50), "2.png": (30,)}
    assert [source for source, _ in seen] in (["0.png", "2.png", "0.png"], ["0.png", "0.png"])
    assert all(any(score == pytest.approx(1 - level / 255) for level in levels[source]) for source, score in seen)


def test_a_call_out_of_turn_leaves_each_frame_its_answer(bundle: Path, graph: GraphSpec) -> None:
    backend = Watched(graph)
    real = backend.finish
    calls = iter([BackendError("another thread", remedy="-"), None, None])

    def finish() -> Prediction:
        if (error := next(calls)) is not None:
            raise error
        return real()

    backend.finish = finish  # type: ignore[method-assign]
    with Inspector(open_bundle(bundle), backend, "fp32") as inspector:
        with pytest.raises(BackendError, match="another thread"):
            list(inspector.inspect_stream(all_here([flat(10)])))
        (first, second) = inspector.inspect_stream(all_here([flat(50)]))
    assert [first.verdict.score, second.verdict.score] == [pytest.approx(1 - level / 255) for level in (10, 50)]
