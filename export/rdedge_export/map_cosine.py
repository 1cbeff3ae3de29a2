"""How alike two engines' anomaly maps of the same frames are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def map_cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine similarity of maps (n, H, W), frame by frame, each map's mean taken off: (n,); 1 where both are equal.

    Without taking it off, the plain head's distances, all of them positive, would make any two maps look alike.
    """
    flat_a, flat_b = (maps.reshape(len(maps), -1).astype(np.float64) for maps in (a, b))
    flat_a, flat_b = (flat - flat.mean(axis=1, keepdims=True) for flat in (flat_a, flat_b))
    norms = np.linalg.norm(flat_a, axis=1) * np.linalg.norm(flat_b, axis=1)
    dots = (flat_a * flat_b).sum(axis=1)
    are_equal = (flat_a == flat_b).all(axis=1)
    cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    return np.asarray(np.where(are_equal, 1.0, np.clip(cosines, -1.0, 1.0)))
