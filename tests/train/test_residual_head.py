"""Whitening and the residual head against plain NumPy, on features whose answer is known."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor

from rdedge_train.residual_head import KEPT_DIRECTIONS, ChannelWhitening, Moments, ResidualDistance


def fit(module: ChannelWhitening | ResidualDistance, chunks: Iterable[Tensor]) -> None:
    moments = Moments()
    for chunk in chunks:
        moments.add(module.vectors(chunk))
    module.fit(moments)


def correlated(n: int, channels: int, seed: int) -> Tensor:
    """Features (n, C, 4, 5) whose channels are mixed and whose spread and mean differ by position."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(channels, channels)) * np.geomspace(1, 0.05, channels)[:, None]
    features = np.einsum("nchw,cd->ndhw", random.normal(size=(n, channels, 4, 5)), mixing)
    features = features * random.uniform(0.5, 2, (1, 1, 4, 5)) + random.normal(size=(1, channels, 4, 5))
    return torch.from_numpy(features.astype(np.float32))


def test_whitened_features_have_unit_covariance() -> None:
    features = correlated(300, 12, 0)
    whitening = ChannelWhitening(12)
    fit(whitening, features.split(64))
    rows = whitening(features).movedim(1, -1).flatten(0, 2).double().numpy()
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-4)
    covariance = np.cov(rows.T)
    variances = np.linalg.eigvalsh(covariance)
    assert variances.max() == pytest.approx(1, abs=0.01)
    assert variances.min() > 0.1  # the floor takes some off where there was next to none


def test_whitening_turns_no_channel_into_another() -> None:
    """ZCA is the whitening nearest to the identity: independent channels are only scaled."""
    features = torch.from_numpy(np.random.default_rng(1).normal(size=(2000, 3, 2, 2)).astype(np.float32))
    features *= torch.tensor([1.0, 5.0, 0.3]).view(1, 3, 1, 1)
    whitening = ChannelWhitening(3)
    fit(whitening, [features])
    matrix = whitening.matrix[:, :, 0, 0].numpy()
    np.testing.assert_allclose(np.diag(matrix), [1, 1 / 5, 1 / 0.3], rtol=0.05)


@pytest.mark.parametrize("channels", [8, 48])
def test_distances_are_those_of_numpy(channels: int) -> None:
    fitted, judged = correlated(400, channels, 2), correlated(7, channels, 3) * 3
    distance = ResidualDistance(channels, (4, 5))
    fit(distance, fitted.split(100))
    kept = min(KEPT_DIRECTIONS, channels)
    data, own = fitted.double().numpy(), []
    for y in range(4):
        for x in range(5):
            own.append(np.cov(data[:, :, y, x].T, bias=True))
    pooled = np.mean(own, axis=0)
    expected = np.empty((7, 4, 5))
    for position, covariance in enumerate(own):
        y, x = divmod(position, 5)
        variances, directions = np.linalg.eigh(0.5 * covariance + 0.5 * pooled)
        floored = variances + 1e-3 * variances.mean()
        off = judged.double().numpy()[:, :, y, x] - data[:, :, y, x].mean(0)
        along = (off @ directions)[:, :kept] / np.sqrt(floored[:kept])
        expected[:, y, x] = np.sqrt((along**2).mean(1))
    actual = distance(judged)
    assert actual.shape == (7, 1, 4, 5)
    np.testing.assert_allclose(actual[:, 0].numpy(), expected, rtol=2e-3)


def test_good_parts_are_about_one_everywhere() -> None:
    distance = ResidualDistance(48, (4, 5))
    fit(distance, [correlated(2000, 48, 4)])
    squared = distance(correlated(2000, 48, 4)).square().mean(dim=(0, 1)).numpy()
    assert squared.min() > 0.2 and squared.max() < 5  # half of the covariance is the mean over positions


def test_chunks_do_not_matter() -> None:
    features = correlated(100, 8, 5)
    distances = [ResidualDistance(8, (4, 5)) for _ in range(2)]
    fit(distances[0], [features])
    fit(distances[1], features.split(7))
    torch.testing.assert_close(distances[0](features), distances[1](features), rtol=2e-3, atol=1e-3)


def test_a_part_that_never_varies_gives_finite_distances() -> None:
    distance, whitening = ResidualDistance(8, (4, 5)), ChannelWhitening(8)
    same = torch.ones(10, 8, 4, 5)
    fit(distance, [same])
    fit(whitening, [same])
    assert torch.isfinite(distance(same)).all() and torch.isfinite(whitening(same)).all()
