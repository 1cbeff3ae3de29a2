"""Every error rdedge raises on purpose. All of them end a command with one line and exit code 2.

RdedgeError
├── UsageError          a command or call that cannot be carried out as asked
├── MissingExtraError   a package of an extra is not installed
├── ImageError          an image or mask that cannot be used
├── DatasetError        a data folder that cannot be used
├── WeightsError        network weights that cannot be used
├── RunError            a training run that cannot be used or continued
├── ExportError         a graph that may not be written
├── BundleError         a bundle that is missing, incomplete, altered or not ours
│   └── ContractError   its contract.json breaks the schema
├── BackendError        no engine, or an engine that failed on a frame
├── DeployError         a bundle that could not be put on a board
├── SourceError         a frame source that cannot be opened or read
│   └── CameraFault     a camera that fails now and may come back
└── SinkError           a result that could not be delivered
"""

from __future__ import annotations


class RdedgeError(Exception):
    """Base of the tree: what was got and what was expected, then what to do about it."""

    def __init__(self, problem: str, *, remedy: str):
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}".replace("\n", " ")


class UsageError(RdedgeError):
    """A command or call that cannot be carried out as asked."""


class MissingExtraError(RdedgeError):
    """A package of an extra is not installed."""


class ImageError(RdedgeError):
    """An image or mask that cannot be used."""


class DatasetError(RdedgeError):
    """A data folder that cannot be used."""


class WeightsError(RdedgeError):
    """Network weights that cannot be used."""


class RunError(RdedgeError):
    """A training run that cannot be used or continued."""


class ExportError(RdedgeError):
    """A graph that may not be written."""


class BundleError(RdedgeError):
    """A bundle that is missing, incomplete, altered or not ours."""


class ContractError(BundleError):
    """A contract.json that breaks the schema."""


class BackendError(RdedgeError):
    """No engine, or an engine that failed on a frame."""


class DeployError(RdedgeError):
    """A bundle that could not be put on a board."""


class SourceError(RdedgeError):
    """A frame source that cannot be opened or read."""


class CameraFault(SourceError):
    """A camera that fails now and may come back; ``kind`` is the word for its event, such as ``unplugged``."""

    def __init__(self, kind: str, problem: str, *, remedy: str):
        super().__init__(problem, remedy=remedy)
        self.kind = kind


class SinkError(RdedgeError):
    """A result that could not be delivered."""
