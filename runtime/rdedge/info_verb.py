"""``rdedge info``: verifies a bundle and shows what it is."""

from __future__ import annotations

import argparse
from pathlib import Path

from rdedge.bundle import open_bundle
from rdedge.contract import CONTRACT_FILE, Contract, PrecisionSpec
from rdedge.fidelity import Gate, Metrics
from rdedge.good_parts import Threshold
from rdedge.signing import SIGNATURE_FILE, check_signature
from rdedge.text import printable
from rdedge.threshold import RULE_NAMES, shortage

Rows = list[tuple[str, str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that `rdedge export --out` made")
    parser.add_argument("--json", action="store_true", help="print the contract instead of a table")
    parser.add_argument(
        "--key", type=Path, metavar="PUB", help="public key, or a folder of them, that must have signed it"
    )


def execute(args: argparse.Namespace) -> int:
    """Prints one verified bundle. Raises BundleError."""
    bundle = open_bundle(args.bundle)
    signed_by = None if args.key is None else check_signature(bundle, args.key)
    if args.json:
        print((bundle.path / CONTRACT_FILE).read_text(encoding="utf-8"), end="")
        return 0
    rows = _describe(bundle.contract)
    for precision, spec in bundle.contract.precisions.items():
        size_mb = (bundle.path / spec.file).stat().st_size / 1e6
        rows += [(precision, f"{spec.file}, {size_mb:.1f} MB"), *_describe_precision(spec)]
    rows += [("files", f"all {len(bundle.contract.files)} files match their sha256")]
    if signed_by is not None:
        rows += [("signature", f"by {signed_by}")]
    elif (bundle.path / SIGNATURE_FILE).exists():
        rows += [("signature", "not checked; give --key PUB")]
    width = max(len(label) for label, _ in rows)
    print(printable(str(bundle.path)))
    for label, text in rows:
        print(f"  {label:<{width}}  {printable(text)}")
    return 0


def _describe(contract: Contract) -> Rows:
    model, data, spec = contract.model, contract.data, contract.input
    height, width = spec.size_hw
    region = "whole picture"
    if spec.roi_xywh is not None:
        x, y, w, h = spec.roi_xywh
        region = f"region {w}x{h} at ({x}, {y})"
    return [
        ("created", contract.created_utc),
        ("model", f"{model.name}, {model.parameters / 1e6:.1f} M parameters"),
        ("trained with", f"OCBE {model.ocbe}, loss {model.loss}, head {model.head}"),
        ("teacher", model.teacher_weights),
        ("trained on", f"{data.train_images} good parts (sha256 {data.train_sha256[:12]})"),
        ("held out", f"{data.held_out_images} good parts (split {data.split}, seed {data.seed})"),
        ("input", f"{width}x{height} {spec.colour_order.upper()}, {region}, shrunk by {spec.resize}"),
        ("calibration", f"{contract.calibration.frames} held-out good parts, to refit thresholds on the device"),
        ("versions", ", ".join(f"{name} {version}" for name, version in contract.versions.items())),
    ]


def _describe_precision(spec: PrecisionSpec) -> Rows:
    parity = spec.parity
    allowed = "" if parity.tolerance is None else f" (allowed {parity.tolerance:.2g})"
    return [
        ("  image threshold", _describe_threshold(spec.image_threshold, "", "false rejects")),
        *([] if (few := shortage(spec.image_threshold)) is None else [("  few parts", few)]),
        ("  pixel threshold", _describe_threshold(spec.pixel_threshold, "the pixels of ", "of pixels above it")),
        (
            "  parity",
            f"off by at most {parity.max_abs_map:.2g} in the map, {parity.max_abs_score:.2g} in the score"
            f" on {parity.frames} frames{allowed}",
        ),
        ("  measured", _describe_metrics(spec.metrics)),
        *([] if spec.gate is None else [("  against fp32", _describe_gate(spec.gate))]),
    ]


def _describe_threshold(threshold: Threshold, of_what: str, above: str) -> str:
    return (
        f"{threshold.value:.4g}: {RULE_NAMES[threshold.rule]} of {of_what}{threshold.parts} held-out good parts;"
        f" asked for {threshold.target_rate:.2%} {above}, expect {threshold.expected_rate:.2%}"
        f" ({threshold.rate_low:.2%} to {threshold.rate_high:.2%}, {threshold.confidence:.0%} sure)"
    )


def _describe_gate(gate: Gate) -> str:
    auroc = "" if gate.auroc_change is None else f", AUROC {gate.auroc_change:+.4f}"
    calibrated = ""
    if gate.quantisation is not None:
        calibrated = f", calibrated on {gate.quantisation.images} images by {gate.quantisation.method}"
    return (
        f"map cosine {gate.map_cosine:.4f}, {gate.verdict_flips:.2%} of verdicts flip{auroc}"
        f" on {gate.good_frames + gate.labelled_frames} parts{calibrated};"
        f" layers kept back: {', '.join(gate.layers_kept_back) or 'none'}"
    )


def _describe_metrics(metrics: Metrics | None) -> str:
    if metrics is None:
        return "not on labelled parts"
    known = {
        "image AUROC": metrics.image_auroc,
        "pixel AUROC": metrics.pixel_auroc,
        "AU-PRO": metrics.au_pro,
        "false rejects": metrics.false_reject_rate,
        "misses": metrics.miss_rate,
    }
    values = ", ".join(f"{name} {value:.3f}" for name, value in known.items() if value is not None)
    return f"on {metrics.images} labelled parts: {values}"
