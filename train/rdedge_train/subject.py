"""What is being evaluated, a run or a bundle, as one thing: frames in, maps and scores out, and its thresholds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rdedge.backends import Backend, infer_all, open_backend
from rdedge.bundle import open_bundle
from rdedge.contract import CONTRACT_FILE, InputSpec, Precision
from rdedge.errors import UsageError
from rdedge.good_parts import Threshold
from rdedge.threshold import DEFAULT_FALSE_REJECT_RATE, fit_thresholds

RUN_FILE = "run.json"
Predict = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """``predict``: uint8 (n, H, W, 3) RGB -> anomaly maps float32 (n, H, W) and scores float32 (n,)."""

    name: str
    input: InputSpec
    image_threshold: Threshold
    predict: Predict
    facts: dict[str, str]


def open_subject(path: Path, precision: Precision) -> Subject:
    """A run folder (through PyTorch) or a bundle (through its engine; needs no torch).

    Raises RunError, BundleError, UsageError.
    """
    if (path / CONTRACT_FILE).exists():
        return _bundle_subject(path, precision)
    if (path / RUN_FILE).exists():
        if precision != "fp32":
            raise UsageError(f"{path}: a run has no {precision}", remedy="evaluate the bundle made from it")
        return _run_subject(path)
    raise UsageError(
        f"{path}: neither a run nor a bundle", remedy="name a folder made by `rdedge train` or `rdedge export`"
    )


def predict_through(backend: Backend, batch: int) -> Predict:
    """An engine for ``batch`` frames at a time as a Subject's ``predict``."""

    def predict(frames_u8: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        answer = infer_all(backend, frames_u8, batch)
        return answer.anomaly_map[:, 0], answer.score

    return predict


def _bundle_subject(path: Path, precision: Precision) -> Subject:
    bundle = open_bundle(path)
    spec = bundle.precision_spec(precision)
    backend = open_backend(bundle, precision=precision)

    model = bundle.contract.model
    facts = {"Bundle": str(path), "Precision": precision, "Engine": backend.name}
    facts |= {"Model": model.name, "Head": model.head, "Bottleneck": model.ocbe}
    return Subject(
        name=path.name,
        input=bundle.contract.input,
        image_threshold=spec.image_threshold,
        predict=predict_through(backend, bundle.contract.graph.batch),
        facts=facts,
    )


def _run_subject(path: Path) -> Subject:
    import torch

    from rdedge_train.run_folder import open_run

    run = open_run(path)

    def predict(frames_u8: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        answers = [run.detector.predict(torch.from_numpy(frame[np.newaxis])) for frame in frames_u8]
        return torch.cat([m[:, 0] for m, _ in answers]).numpy(), torch.cat([s for _, s in answers]).numpy()

    maps, scores = predict(run.held_out_frames())
    config = run.record.config
    facts = {"Run": str(path), "Precision": "fp32", "Engine": "PyTorch"}
    facts |= {"Model": config.model, "Head": config.head, "Bottleneck": config.ocbe}
    return Subject(
        name=path.name,
        input=config.input,
        image_threshold=fit_thresholds(maps, scores, DEFAULT_FALSE_REJECT_RATE)[0],
        predict=predict,
        facts=facts,
    )
