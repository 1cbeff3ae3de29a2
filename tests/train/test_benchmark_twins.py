"""Near-duplicates are told from other parts."""

from __future__ import annotations

import numpy as np
import torch

from twins import TWIN_CORRELATION, coarse_features, highest_correlations


def test_another_picture_of_a_part_correlates_and_another_part_does_not() -> None:
    random = torch.Generator().manual_seed(0)
    common = 10 * torch.randn(1, 6, 16, 16, generator=random)
    parts = torch.randn(20, 6, 16, 16, generator=random) + common
    again = parts[:5] + 0.5 * torch.randn(5, 6, 16, 16, generator=random)
    strangers = torch.randn(5, 6, 16, 16, generator=random) + common
    found = highest_correlations(torch.cat([again, strangers]), parts) > TWIN_CORRELATION
    np.testing.assert_array_equal(found.numpy(), [True] * 5 + [False] * 5)


def test_features_of_any_size_are_brought_to_one_grid() -> None:
    chunks = [[torch.zeros(n, 4, 80, 80), torch.zeros(n, 5, 40, 40), torch.ones(n, 6, 20, 24)] for n in (2, 3)]
    features = coarse_features(chunks)
    assert features.shape == (5, 6, 16, 16)
    assert (features == 1).all()
