"""A bundle tried beside the running line: its held-out good parts through the line's own engine.

A process of its own, so that an engine which crashes or eats memory takes neither the deploy nor the line along:
``python -m rdedge.deploy.trial BUNDLE BACKEND PRECISION MAX_REJECT_RATE``.
"""

from __future__ import annotations

import sys

import msgspec
import numpy as np

from rdedge.backends import BackendName
from rdedge.contract import Precision
from rdedge.errors import DeployError, RdedgeError
from rdedge.inspector import Inspector
from rdedge.text import printable


def try_bundle(bundle: str, backend: BackendName, precision: Precision, max_reject_rate: float) -> str:
    """Every calibration frame to a verdict; returns what came out. Raises BundleError, BackendError, DeployError."""
    with Inspector.open(bundle, backend=backend, precision=precision) as inspector:
        frames_u8 = inspector.bundle.calibration_frames()
        scores = np.array([inspector.backend.infer(frame_u8[np.newaxis]).score[0] for frame_u8 in frames_u8])
        threshold = inspector.threshold
    if not np.isfinite(scores).all():
        raise DeployError(f"{bundle}: gives scores that are no numbers", remedy="export it again")
    rejected = int((scores > threshold).sum())
    text = f"{rejected} of {len(scores)} good parts rejected at {threshold:.4g}, scores up to {scores.max():.4g}"
    if rejected > max_reject_rate * len(scores):
        raise DeployError(f"{text}; allowed are {max_reject_rate:.0%}", remedy="fit its threshold: export it again")
    return text


def main(arguments: list[str]) -> int:
    """Prints one line; 0 if the bundle does, else 2."""
    try:
        bundle, backend, precision, limit = arguments
        text = try_bundle(
            bundle,
            msgspec.convert(backend, BackendName),
            msgspec.convert(precision, Precision),
            float(limit),
        )
    except RdedgeError as exc:
        print(printable(str(exc)), file=sys.stderr)
        return 2
    print(printable(text))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
