"""One training in a process of its own: after each epoch it tells how long it has trained and what it is worth.

Its argument is a JSON object: ``kind``, ``model``, ``data`` (a sample's folder), ``teacher`` (encoder state dict, or
nothing for the weights of the package), ``epochs``, ``limit_s``, ``target``. It answers a JSON object a line. The clock
starts when the libraries are imported and stands still while parts are judged. It ends at the target or the limit.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rdedge.contract import InputSpec
from rdedge_train.data import GOOD, find_images, read_frames
from rdedge_train.metrics import auroc
from rdedge_train.model import Detector

SIZE_HW, BATCH = (256, 256), 16
INPUT = InputSpec(size_hw=SIZE_HW, colour_order="rgb", resize="area+linear", roi_xywh=None)
Score = Callable[[NDArray[np.uint8]], float]  # of one frame (1, H, W, 3) RGB


class Clock:
    """Seconds of training, less those of judging; says what was reached."""

    def __init__(self, spec: dict[str, Any], answers: Any):
        self._spec, self._answers = spec, answers
        data = Path(spec["data"])
        parts = find_images(data).test_parts
        self._frames_u8 = read_frames(data, [part.path for part in parts], INPUT).frames_u8
        self._is_defective = np.array([part.defect != GOOD for part in parts], dtype=np.bool_)
        self._epoch, self._judged_s, self._started = 0, 0.0, time.perf_counter()

    def judge(self, score: Score) -> bool:
        """After an epoch: whether training shall end."""
        at = time.perf_counter()
        clock_s = at - self._started - self._judged_s
        self._epoch += 1
        scores = np.array([score(frame_u8[np.newaxis]) for frame_u8 in self._frames_u8], np.float32)
        reached = auroc(scores, self._is_defective)
        told = {"epoch": self._epoch, "clock_s": clock_s, "auroc": reached}
        print(json.dumps(told), file=self._answers, flush=True)
        self._judged_s += time.perf_counter() - at
        is_late = clock_s >= self._spec["limit_s"] or self._epoch >= self._spec["epochs"]
        return bool(reached >= self._spec["target"] or is_late)


class Enough(Exception):
    """Ends a loop that is not ours to leave."""


def main() -> None:
    """Train as the kind does."""
    spec = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.manual_seed(0)
    KINDS[spec["kind"]](spec, answers)


def _score_of(detector: Detector) -> Score:
    return lambda frame_u8: float(detector.predict(torch.from_numpy(frame_u8))[1])


def rdedge_constant_rate(spec: dict[str, Any], answers: Any) -> None:
    """``rdedge train`` of one of the paper's models, looked into where it saves an epoch."""
    import rdedge_train.fit
    from rdedge_train.allocator import keep_freed_memory
    from rdedge_train.config import TrainConfig
    from rdedge_train.distributed import World
    from rdedge_train.teachers import load_teacher_weights

    keep_freed_memory()
    judged = Detector(spec["model"], SIZE_HW)
    load_teacher_weights(judged.teacher, spec["model"], spec["teacher"])
    loop: Any = rdedge_train.fit
    save = loop.save_state
    clock = Clock(spec, answers)

    def save_and_judge(out: Path, restorer: Any, optimiser: Any, history: Any) -> None:
        save(out, restorer, optimiser, history)
        judged.restorer.load_state_dict(restorer.state_dict())
        if clock.judge(_score_of(judged)):
            raise Enough

    loop.save_state = save_and_judge
    config = TrainConfig(
        model=spec["model"],
        input=INPUT,
        ocbe="mff+oce",
        loss="flattened",
        head="plain",
        epochs=spec["epochs"],
        batch_size=BATCH,
        learning_rate=0.005,
        seed=0,
        held_out_share=0.1,
        teacher_weights=spec["teacher"],
    )
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        try:
            rdedge_train.fit.fit(Path(spec["data"]), Path(folder) / "run", config, world)
        except Enough:
            return


def rdedge_edge(spec: dict[str, Any], answers: Any) -> None:
    """``rdedge train`` of an edge model: its rate falls to zero and its head is fitted last, so whole runs count."""
    from rdedge.cli import main as rdedge
    from rdedge_train.run_folder import open_run

    clock = Clock(spec, answers)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = ["train", spec["data"], "--out", str(run), "--model", spec["model"], "--epochs", str(spec["epochs"])]
        if rdedge(command) != 0:
            raise SystemExit(f"rdedge {' '.join(command)} failed")
        clock.judge(_score_of(open_run(run).detector))


def official(spec: dict[str, Any], answers: Any) -> None:
    """The official loop: PIL images anew each epoch, teacher in the graph, flattened cosine, Adam."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    steps = [transforms.Resize(SIZE_HW), transforms.ToTensor(), transforms.CenterCrop(SIZE_HW)]
    steps.append(transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    transform = transforms.Compose(steps)
    paths = find_images(Path(spec["data"])).good_paths

    class Parts(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            image: torch.Tensor = transform(Image.open(paths[index]).convert("RGB"))
            return image

    detector = Detector(spec["model"], SIZE_HW)
    detector.teacher.encoder.load_state_dict(torch.load(spec["teacher"], weights_only=True))
    detector.teacher.encoder.requires_grad_(True)  # the official code leaves it so
    optimiser = torch.optim.Adam(detector.restorer.parameters(), lr=0.005, betas=(0.5, 0.999))
    cosine = torch.nn.CosineSimilarity()
    clock = Clock(spec, answers)
    while True:
        detector.train()
        for images in DataLoader(Parts(), batch_size=BATCH, shuffle=True):
            teacher = detector.teacher.encode(images)
            student = detector.restorer(teacher)
            levels = zip(teacher, student, strict=True)
            loss = sum(torch.mean(1 - cosine(t.flatten(1), s.flatten(1))) for t, s in levels)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[union-attr]
            optimiser.step()
            loss.item()  # type: ignore[union-attr]
        if clock.judge(_score_of(detector)):
            return


def anomalib(spec: dict[str, Any], answers: Any) -> None:
    """anomalib's ReverseDistillation, trained by its Engine on its Folder data module."""
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from anomalib.models import ReverseDistillation
    from lightning.pytorch import Callback

    model = ReverseDistillation(spec["model"], pre_trained=False, evaluator=False, visualizer=False)
    model.model.encoder.feature_extractor.load_state_dict(torch.load(spec["teacher"], weights_only=True), strict=False)
    data = Path(spec["data"])
    parts = Folder(
        "parts",
        normal_dir=data / "train" / "good",
        test_split_mode="none",
        val_split_mode="none",
        train_batch_size=BATCH,
        num_workers=0,
    )
    clock = Clock(spec, answers)

    @torch.no_grad()
    def score(frame_u8: NDArray[np.uint8]) -> float:
        image = torch.from_numpy(frame_u8).permute(0, 3, 1, 2).float() / 255.0
        return float(model.model(model.pre_processor(image)).pred_score)

    class Judge(Callback):  # type: ignore[misc]  # mypy does not see lightning
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            model.eval()
            trainer.should_stop = clock.judge(score)
            model.train()

    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            max_epochs=spec["epochs"],
            callbacks=[Judge()],
            accelerator="cpu",
            devices=1,
            logger=False,
            default_root_dir=folder,
            limit_val_batches=0,
            enable_progress_bar=False,
        )
        engine.fit(model=model, datamodule=parts)


KINDS: dict[str, Callable[[dict[str, Any], Any], None]] = {
    function.__name__: function for function in (rdedge_constant_rate, rdedge_edge, official, anomalib)
}

if __name__ == "__main__":
    main()
