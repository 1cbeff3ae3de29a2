"""Teacher features of a set of frames: computed once and kept where memory allows, again at each use where not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NewType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdedge_train.fold import quick
from rdedge_train.teachers import Teacher

QuickTeacher = NewType("QuickTeacher", Teacher)

_CHUNK = 16  # frames a teacher pass, always: another number rounds differently


class TeacherFeatures:
    """Features of ``frames_u8`` (n, H, W, 3) by index, channels last in memory as the frames are, which trains faster.

    The teacher is frozen, so keeping them changes nothing.
    """

    def __init__(self, teacher: QuickTeacher, frames_u8: NDArray[np.uint8], device: torch.device, *, budget_bytes: int):
        """``budget_bytes``: keep the features in main memory if they fit, else compute them at each use."""
        self._teacher = teacher
        self._frames_u8 = frames_u8
        self.device = device
        sample = self._compute(np.arange(min(1, len(frames_u8))))
        self.bytes_needed = sum(f.numel() * f.element_size() for f in sample) * len(frames_u8)
        self.is_kept = self.bytes_needed <= budget_bytes
        self._kept: list[Tensor] = []
        if self.is_kept:
            self._kept = [
                torch.empty((len(frames_u8), *f.shape[1:]), memory_format=torch.channels_last) for f in sample
            ]
            for start in range(0, len(frames_u8), _CHUNK):
                stop = min(start + _CHUNK, len(frames_u8))
                for kept, level in zip(self._kept, self._compute(np.arange(start, stop)), strict=True):
                    kept[start:stop] = level.cpu()

    def __len__(self) -> int:
        return len(self._frames_u8)

    def batch(self, indices: NDArray[np.int64]) -> list[Tensor]:
        """Features, fine to coarse, each (len(indices), C, h, w) on the device."""
        if not self.is_kept:
            return self._compute(indices)
        chosen = torch.from_numpy(indices)
        return [level[chosen].to(self.device, memory_format=torch.channels_last) for level in self._kept]

    def in_order(self) -> Iterator[list[Tensor]]:
        """Features of all frames, chunk by chunk."""
        for start in range(0, len(self), _CHUNK):
            yield self.batch(np.arange(start, min(start + _CHUNK, len(self)), dtype=np.int64))

    def disturbed_in_order(
        self, disturb: Callable[[NDArray[np.uint8], NDArray[np.int64]], NDArray[np.uint8]]
    ) -> Iterator[list[Tensor]]:
        """Features of what ``disturb`` makes of frames and their numbers, chunk by chunk; none is kept."""
        for start in range(0, len(self), _CHUNK):
            numbers = np.arange(start, min(start + _CHUNK, len(self)), dtype=np.int64)
            yield self._teacher_pass(disturb(self._frames_u8[numbers], numbers))

    def _compute(self, indices: NDArray[np.int64]) -> list[Tensor]:
        starts = range(0, max(1, len(indices)), _CHUNK)
        passes = [self._teacher_pass(self._frames_u8[indices[start : start + _CHUNK]]) for start in starts]
        # The student rounds by layout, so it is the same whether features are kept or not.
        return [torch.cat(level).contiguous(memory_format=torch.channels_last) for level in zip(*passes, strict=True)]

    @property
    def size_hw(self) -> tuple[int, ...]:
        """Of the frames."""
        return self._frames_u8.shape[1:3]

    @torch.no_grad()
    def _teacher_pass(self, frames_u8: NDArray[np.uint8]) -> list[Tensor]:
        """Up to _CHUNK frames, filled up with copies, so that a frame's bits do not depend on their number."""
        n = len(frames_u8)
        filled_u8 = np.resize(frames_u8 if n else self._frames_u8[:1], (_CHUNK, *frames_u8.shape[1:]))
        features: list[Tensor] = self._teacher(torch.from_numpy(filled_u8).to(self.device))
        return [level[:n] for level in features]


def quick_teacher(teacher: Teacher, size_hw: tuple[int, ...], device: torch.device) -> QuickTeacher:
    """A copy whose features are the same but for rounding, in less time."""
    return QuickTeacher(quick(teacher, size_hw, device))


def memory_budget_bytes(processes: int) -> int:
    """Half of the memory that is free now, shared by the processes on this machine."""
    with open("/proc/meminfo", encoding="ascii") as f:
        rows = dict(line.split(":", 1) for line in f)
    return int(rows["MemAvailable"].split()[0]) * 1024 // 2 // processes
