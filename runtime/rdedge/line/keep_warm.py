"""Keeps the engine's clocks awake while no part comes: the first frame after a pause then takes no longer than others.

A GPU that has nothing to do lowers its clocks within a second, and after ten a frame may take ten times as long
(https://github.com/NVIDIA/TensorRT/issues/2042). ``rdedge power --max-clocks`` does the same for the whole board, where
one has root and can bear the heat.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rdedge.backends import PipelinedBackend
from rdedge.inspector import Inspector


class KeepWarm:
    """Used from the thread of the loop, and only when no frame waits: a frame that comes meanwhile waits for one
    inference at most. What it computes goes nowhere: no verdict, no count."""

    def __init__(self, inspectors: Sequence[Inspector], every_s: float):
        """``every_s``: pause between two inferences that have no part; infinite: never one."""
        self.runs = 0
        self._inspectors = list(dict.fromkeys(inspectors))
        self._every_s = every_s
        self._due_s = time.monotonic() + every_s
        self._frames_u8: dict[Inspector, NDArray[np.uint8]] = {}  # black: an engine's work is the same for any picture

    def wait_s(self, longest_s: float) -> float:
        """How long to wait for a frame before ``run``, seconds."""
        return max(0.0, min(longest_s, self._due_s - time.monotonic()))

    def rest(self) -> None:
        """A real frame was judged: the pause begins anew."""
        self._due_s = time.monotonic() + self._every_s

    def run(self) -> None:
        """One inference of one engine, in turn, if it is due. Raises BackendError."""
        if time.monotonic() < self._due_s:
            return
        inspector = self._inspectors[self.runs % len(self._inspectors)]
        backend = inspector.backend
        if not (isinstance(backend, PipelinedBackend) and backend.under_way):
            if inspector not in self._frames_u8:
                self._frames_u8[inspector] = np.zeros(inspector.bundle.contract.graph.frame.shape, np.uint8)
            backend.infer(self._frames_u8[inspector])
        self.runs += 1
        self.rest()
