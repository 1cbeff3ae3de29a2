"""One subject in a process of its own: frame in, verdict number out, on the parent's call. Needs only its own library.

Its argument is a JSON object: the subject's ``kind`` and files. It answers on standard output, a JSON object a line:
the first verdict, then, for each line it reads, the milliseconds of one more, and at the end its peak memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Answer = tuple[float, NDArray[np.float32]]  # the verdict's number, and the map (h, w) it came from
Run = Callable[[NDArray[np.uint8]], Answer]  # of a decoded BGR picture (H, W, 3)

SIZE = 256
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def main() -> None:
    """First verdict, maps of the small frames, then a verdict a line until standard input ends."""
    spec = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is none of our answers
    run = SUBJECTS[spec["kind"]](spec)
    frame_bgr_u8 = np.load(spec["frame"])

    def tell(**facts: float) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    tell(score=run(frame_bgr_u8)[0])
    np.save(spec["maps"], np.stack([run(small)[1] for small in np.load(spec["small_frames"])]))
    for _ in sys.stdin:
        started = time.perf_counter()
        run(frame_bgr_u8)
        tell(ms=(time.perf_counter() - started) * 1e3)
    tell(peak_mb=peak_mb())


def peak_mb() -> float:
    """Peak resident memory of this program alone; getrusage's begins with that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def shrunk_rgb(frame_bgr_u8: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What a user writes before a model of 256x256; faster than PIL's resize, which the official code uses."""
    return np.asarray(cv2.cvtColor(cv2.resize(frame_bgr_u8, (SIZE, SIZE)), cv2.COLOR_BGR2RGB))


def rdedge(spec: dict[str, Any]) -> Run:
    """A bundle by the façade; ``graph``: another file of the same graph than the bundle's FP32 one."""
    from rdedge import Inspector
    from rdedge.bundle import open_bundle

    if "graph" not in spec:
        inspector = Inspector.open(spec["bundle"], backend=spec["backend"])
    else:
        from rdedge.backends.openvino import OpenVinoBackend

        bundle = open_bundle(spec["bundle"])
        inspector = Inspector(bundle, OpenVinoBackend(Path(spec["graph"]), bundle.contract.graph), "fp32")

    def run(frame_bgr_u8: NDArray[np.uint8]) -> Answer:
        verdict = inspector.inspect(frame_bgr_u8)
        return verdict.score, verdict.anomaly_map

    return run


def official(spec: dict[str, Any]) -> Run:
    """The official test loop, PyTorch eager and SciPy; its network is rdedge_train.paper."""
    import torch
    import torch.nn.functional as F
    from scipy.ndimage import gaussian_filter

    from rdedge_train.model import Detector

    detector = Detector(spec["model"], (SIZE, SIZE)).eval()
    detector.load_state_dict(torch.load(spec["weights"], weights_only=True))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))

    @torch.no_grad()
    def run(frame_bgr_u8: NDArray[np.uint8]) -> Answer:
        image = (torch.from_numpy(shrunk_rgb(frame_bgr_u8)).permute(2, 0, 1)[None].float() / 255.0 - mean) / std
        teacher = detector.teacher.encode(image)
        student = detector.restorer(teacher)
        total = np.zeros((SIZE, SIZE))
        for t, s in zip(teacher, student, strict=True):
            level = (1 - F.cosine_similarity(t, s))[:, None]
            total += F.interpolate(level, size=SIZE, mode="bilinear", align_corners=True)[0, 0].numpy()
        blurred = gaussian_filter(total, sigma=4)
        return float(blurred.max()), blurred.astype(np.float32)

    return run


def by_hand(spec: dict[str, Any]) -> Run:
    """The network exported as it is and run by ONNX Runtime as its tutorials do; the blur by SciPy."""
    import onnxruntime as ort
    from scipy.ndimage import gaussian_filter

    session = ort.InferenceSession(spec["graph"], providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()

    def run(frame_bgr_u8: NDArray[np.uint8]) -> Answer:
        image = (shrunk_rgb(frame_bgr_u8).astype(np.float32) / 255.0 - MEAN) / STD
        (total,) = session.run(None, {source.name: np.ascontiguousarray(image.transpose(2, 0, 1)[None])})
        blurred = gaussian_filter(total[0, 0], sigma=4)
        return float(blurred.max()), blurred

    return run


def anomalib_torch(spec: dict[str, Any]) -> Run:
    """anomalib's TorchInferencer on what its ``to_torch`` wrote."""
    os.environ["TRUST_REMOTE_CODE"] = "1"  # it loads a pickle; it is our own
    from anomalib.deploy import TorchInferencer

    inferencer = TorchInferencer(spec["graph"], device="cpu")

    def run(frame_bgr_u8: NDArray[np.uint8]) -> Answer:
        import torch

        with torch.no_grad():
            answer = inferencer.predict(shrunk_rgb(frame_bgr_u8))
        return float(answer.pred_score), answer.anomaly_map.squeeze().numpy()

    return run


def anomalib_openvino(spec: dict[str, Any]) -> Run:
    """anomalib's OpenVINOInferencer on what ``to_openvino`` wrote; ``precision``: OpenVINO's hint, or its default."""
    from anomalib.deploy import OpenVINOInferencer

    config = {"INFERENCE_PRECISION_HINT": spec["precision"]} if "precision" in spec else None
    inferencer = OpenVINOInferencer(spec["graph"], device="CPU", config=config)

    def run(frame_bgr_u8: NDArray[np.uint8]) -> Answer:
        answer = inferencer.predict(shrunk_rgb(frame_bgr_u8))
        return float(np.asarray(answer.pred_score).squeeze()), np.asarray(answer.anomaly_map).squeeze()

    return run


SUBJECTS: dict[str, Callable[[dict[str, Any]], Run]] = {
    function.__name__: function for function in (rdedge, official, by_hand, anomalib_torch, anomalib_openvino)
}

if __name__ == "__main__":
    main()
