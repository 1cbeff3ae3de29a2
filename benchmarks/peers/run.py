"""rdedge beside its peers on this CPU: one command makes their environments, gives all the same weights and frames,
and measures frame to verdict, maps, start, memory, install size and import time.

Each subject runs in a process of its own with as many threads as it takes by itself, on the same decoded uint8 frame
of 1024x1024, until the verdict's number is out; one verdict of each in turn. Weights are random unless ``--run`` names
a trained run: they change no time, but a map shows what reduced precision does to it only where it shows something.
OpenCV shrinks the frame for the peers, which their own ways do more slowly. Ultralytics has no anomaly detection
model; its pre-processing is what "by hand" does. The map error is that of frames of the model's size, so that it
holds nothing of how a frame is shrunk; the cosine is the gate's, means taken off.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers.environments import ROOT, Environment, make_environment
from peers.measure import Subject, map_error, measure, reference_maps, table
from peers.prepare import (
    Inputs,
    anomalib_weights,
    edge_bundle,
    lower_to_int8,
    make_inputs,
    official_weights,
    random_detector,
)
from rdedge.errors import ExportError
from rdedge_train.model import Detector
from rdedge_train.run_folder import open_run
from results_file import write_results

OFFICIAL = "official RD4AD, PyTorch eager + SciPy"
FOLDERS = {"wide_resnet50_2": "WRN-50", "resnet18": "ResNet-18"}


@dataclass(frozen=True, slots=True)
class Environments:
    """Who runs where. ``light``: rdedge with ``[cpu]`` alone, measured and not used."""

    rdedge: Environment
    light: Environment
    peers: Environment


def main() -> None:
    """Make, measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--models", nargs="+", default=["wide_resnet50_2", "resnet18"], choices=list(FOLDERS))
    parser.add_argument("--run", type=Path, help="of `rdedge train --model resnet18`: its weights, and its model alone")
    parser.add_argument("--torch", nargs="+", default=["torch", "torchvision"], help="pip's arguments for the peers")
    parser.add_argument("--environments", type=Path, help="folder to keep the environments in (default: none is kept)")
    args = parser.parse_args()
    trained = None if args.run is None else open_run(args.run)
    if trained is not None and (trained.record.config.model, trained.record.config.head) != ("resnet18", "plain"):
        parser.error(
            "--run takes a resnet18 with the plain head: of the others, anomalib has no network of this layout"
        )
    models = args.models if trained is None else ["resnet18"]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        environments = make_environments(args.environments or folder / "environments", args.torch, min(5, args.rounds))
        inputs = make_inputs(folder)
        shared = {"frame": str(inputs.frame), "small_frames": str(inputs.small_frames)}
        sections, figures = footprint(environments)
        for model in models:
            detector = random_detector(model) if trained is None else trained.detector
            for title, subjects, than in groups(model, detector, folder, inputs, environments):
                measured = measure(subjects, folder / "workers" / title, shared, args.rounds)
                sections += ["", f"{title}, {args.rounds} interleaved rounds:", ""]
                sections += table(subjects, measured, than)
                references = reference_maps(subjects, measured)
                figures[title] = {
                    name: {
                        "rounds_ms": one.times_ms,
                        "first_verdict_s": one.first_s,
                        "peak_mb": one.peak_mb,
                        "map_error_and_cosine": map_error(one.maps, references[name]),
                    }
                    for name, one in measured.items()
                }
                print("\n".join(sections[-len(subjects) - 4 :]), flush=True)
    about = " ".join((__doc__ or "").split("\n\n", 1)[1].split())
    theme = "peers" if trained is None else "peers_trained"
    write_results(theme, "\n".join([about, "", *sections]), figures, ("torch", "onnxruntime", "scipy"))


def make_environments(folder: Path, torch: list[str], imports: int) -> Environments:
    """Three virtual environments; the peers share one, whose size is that of anomalib's OpenVINO inference."""
    folder.mkdir(parents=True, exist_ok=True)
    return Environments(
        rdedge=make_environment(folder / "rdedge", [f"{ROOT}[cpu,openvino]"], [], "import rdedge, openvino", imports),
        light=make_environment(folder / "light", [f"{ROOT}[cpu]"], [], "import rdedge", imports),
        peers=make_environment(
            folder / "anomalib",
            ["anomalib", "openvino", *torch],
            ["nncf", "onnx", "onnxscript", "onnxruntime", "msgspec", "safetensors"],
            "from anomalib.deploy import OpenVINOInferencer",
            imports,
        ),
    )


def footprint(environments: Environments) -> tuple[list[str], dict[str, Any]]:
    """Sizes and import times; ratios to anomalib's."""
    peers, light = environments.peers, environments.light
    rows = [
        "| environment | MB | without CUDA's libraries | share of anomalib's | import, s | share of anomalib's |",
        "|---|---|---|---|---|---|",
    ]
    named = {
        "anomalib, OpenVINO, torch": peers,
        "rdedge[cpu]": light,
        "rdedge[cpu,openvino]": environments.rdedge,
    }
    for name, one in named.items():
        size, seconds = one.less_cuda_mb / peers.less_cuda_mb, one.import_s / peers.import_s
        rows.append(
            f"| {name} | {one.size_mb:.0f} | {one.less_cuda_mb:.0f} | {size:.1%} | {one.import_s:.2f} | {seconds:.1%} |"
        )
    return rows, {"environments": {name: asdict(one) | {"python": ""} for name, one in named.items()}}


def groups(
    model: str, detector: Detector, folder: Path, inputs: Inputs, environments: Environments
) -> list[tuple[str, list[Subject], str]]:
    """Of one model, per layout of weights: title, subjects, and whom the others are compared with."""
    name, peers, ours = FOLDERS[model], environments.peers.python, environments.rdedge.python
    official, anomalib = folder / f"{model}-official", folder / f"{model}-anomalib"
    official_weights(model, detector, inputs, official)
    anomalib_weights(model, detector, inputs, anomalib)
    script = Path(__file__).resolve().parent / "anomalib_models.py"
    parts = inputs.parts / "train" / "good"
    command = [str(peers), str(script), model, str(anomalib / "anomalib.pt"), str(parts), str(anomalib)]
    done = subprocess.run(command, cwd=anomalib, capture_output=True, text=True, errors="replace")
    torch_file = str(anomalib / "torch" / "weights" / "torch" / "model.pt")
    ir, int8 = (str(anomalib / kind / "weights" / "openvino" / "model.xml") for kind in ("openvino", "int8"))
    if done.returncode != 0:  # INT8 comes last, and may be what failed
        print(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}", file=sys.stderr)
        if not Path(ir).exists():
            raise SystemExit("anomalib's models could not be made")
    weights = str(official / "weights.pt")
    eager = Subject(OFFICIAL, peers, {"kind": "official", "model": model, "weights": weights}, is_reference=True)
    hand = Subject("ONNX Runtime by hand", peers, {"kind": "by_hand", "graph": str(official / "by_hand.onnx")})
    theirs = [
        Subject("anomalib TorchInferencer", peers, {"kind": "anomalib_torch", "graph": torch_file}, is_reference=True),
        Subject(
            "anomalib OpenVINOInferencer, f32", peers, {"kind": "anomalib_openvino", "graph": ir, "precision": "f32"}
        ),
        Subject("anomalib OpenVINOInferencer", peers, {"kind": "anomalib_openvino", "graph": ir}),
    ]
    if done.returncode == 0:
        theirs.append(Subject("anomalib OpenVINOInferencer, INT8", peers, {"kind": "anomalib_openvino", "graph": int8}))
    edge: list[Subject] = []
    if model == "wide_resnet50_2":
        edge_bundle(inputs, folder / "edge")
        edge = bundle_subjects("rdedge edge-lite0", folder / "edge", inputs, ours, is_reference=True)
    return [
        (
            f"{name}, official layout",
            [eager, hand, *bundle_subjects("rdedge", official, inputs, ours), *edge],
            OFFICIAL,
        ),
        (
            f"{name}, anomalib's layout",
            [*theirs, *bundle_subjects("rdedge", anomalib, inputs, ours)],
            "anomalib OpenVINOInferencer",
        ),
    ]


def bundle_subjects(
    name: str, folder: Path, inputs: Inputs, python: Path, *, is_reference: bool = False
) -> list[Subject]:
    """The bundle in ``folder`` on each CPU engine in FP32, and in INT8 on OpenVINO where the gate lets it.

    ``is_reference``: of another model than the subjects before.
    """
    spec = {"kind": "rdedge", "bundle": str(folder / "bundle")}
    subjects = [
        Subject(f"{name}, ONNX Runtime", python, spec | {"backend": "onnxruntime"}, is_reference=is_reference),
        Subject(f"{name}, OpenVINO", python, spec | {"backend": "openvino"}),
    ]
    try:
        graph = lower_to_int8(inputs, folder)
    except ExportError as exc:
        print(f"{name}: no INT8, {exc}", file=sys.stderr)
        return subjects
    return [*subjects, Subject(f"{name}, OpenVINO INT8", python, spec | {"graph": str(graph)})]


if __name__ == "__main__":
    main()
