"""rdedge: visual inspection by reverse distillation; this package is the line's side and never imports torch."""

from rdedge.backends import Backend, Prediction
from rdedge.bundle import Bundle, open_bundle
from rdedge.contract import Contract
from rdedge.errors import RdedgeError
from rdedge.frames import Frame
from rdedge.inspector import Inspection, Inspector, StageTimes
from rdedge.judge import Region, Verdict
from rdedge.preprocess import preprocess

__all__ = [
    "Backend",
    "Bundle",
    "Contract",
    "Frame",
    "Inspection",
    "Inspector",
    "Prediction",
    "RdedgeError",
    "Region",
    "StageTimes",
    "Verdict",
    "open_bundle",
    "preprocess",
]
