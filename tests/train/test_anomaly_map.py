"""The folded anomaly map against resize + SciPy's Gaussian, and the cosine distance against torch's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from rdedge_train.anomaly_map import AnomalyMap, blur_matrix, cosine_distance, upsample_matrix

STRIDES = (4, 8, 16)
SIZES_HW = [(256, 256), (64, 64), (64, 96), (320, 192), (32, 256)]


def random_level_maps(size_hw: tuple[int, int], batch: int = 2) -> list[Tensor]:
    """Distances in 0..2, as the cosine distance gives."""
    generator = torch.Generator().manual_seed(size_hw[0] * 1000 + size_hw[1])
    shapes = [(batch, 1, size_hw[0] // s, size_hw[1] // s) for s in STRIDES]
    return [2.0 * torch.rand(shape, generator=generator) for shape in shapes]


def resize_sum_blur(level_maps: list[Tensor], size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """The official recipe, step by step in float64: (N, H, W)."""
    resized = [interpolate(m.double(), size=size_hw, mode="bilinear", align_corners=True) for m in level_maps]
    return np.stack([gaussian_filter(image, sigma=4) for image in sum(resized)[:, 0].numpy()])


@pytest.mark.parametrize("size_hw", SIZES_HW, ids="{0[0]}x{0[1]}".format)
def test_folded_products_equal_resize_and_scipy_blur(size_hw: tuple[int, int]) -> None:
    level_maps = random_level_maps(size_hw)
    anomaly_map, score = AnomalyMap(size_hw, STRIDES)(level_maps)
    assert anomaly_map.shape == (2, 1, *size_hw)
    np.testing.assert_allclose(anomaly_map[:, 0].numpy(), resize_sum_blur(level_maps, size_hw), rtol=0, atol=2e-6)
    assert score.tolist() == [image.max().item() for image in anomaly_map]


def test_score_is_the_maximum_of_each_image_by_itself() -> None:
    level_maps = [torch.zeros(3, 1, 64 // s, 64 // s) for s in STRIDES]
    level_maps[0][1, 0, 5, 9] = 1.0
    level_maps[2][2] = 0.5
    anomaly_map, score = AnomalyMap((64, 64), STRIDES)(level_maps)
    assert score.shape == (3,)
    assert score[0] == 0.0
    assert divmod(int(anomaly_map[1, 0].argmax()), 64) == (21, 38)  # corners aligned: 5 * 63/15, 9 * 63/15
    assert score[2].item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (1, 8), (2, 8), (16, 16), (8, 64), (17, 40)])
def test_upsample_matrix_is_torchs_bilinear_with_aligned_corners(n_in: int, n_out: int) -> None:
    x = torch.from_numpy(np.random.default_rng(n_in).random(n_in))
    expected = interpolate(x.view(1, 1, n_in, 1), size=(n_out, 1), mode="bilinear", align_corners=True)
    np.testing.assert_allclose(upsample_matrix(n_in, n_out) @ x.numpy(), expected.flatten().numpy(), atol=1e-12)


@pytest.mark.parametrize("n", [4, 15, 16, 17, 33, 64])  # shorter than the kernel's radius of 16, and longer
def test_blur_matrix_is_scipys_gaussian_with_repeated_edges(n: int) -> None:
    x = np.random.default_rng(n).random(n)
    np.testing.assert_allclose(blur_matrix(n) @ x, gaussian_filter1d(x, sigma=4), atol=1e-12)
    np.testing.assert_allclose(blur_matrix(n).sum(axis=1), 1.0, atol=1e-12)


def test_cosine_distance_is_one_minus_torchs_similarity() -> None:
    generator = torch.Generator().manual_seed(1)
    teacher, student = torch.randn(2, 3, 24, 7, 5, generator=generator).unbind(0)
    distance = cosine_distance(teacher, student)
    assert distance.shape == (3, 1, 7, 5)
    torch.testing.assert_close(distance[:, 0], 1.0 - cosine_similarity(teacher, student, dim=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("student_of", "expected"),
    [
        pytest.param(lambda t: 3.0 * t, 0.0, id="same direction"),
        pytest.param(lambda t: -t, 2.0, id="opposite"),
        pytest.param(torch.zeros_like, 1.0, id="dead student"),
    ],
)
def test_cosine_distance_at_its_ends(student_of: Callable[[Tensor], Tensor], expected: float) -> None:
    teacher = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(2))
    distance = cosine_distance(teacher, student_of(teacher))
    torch.testing.assert_close(distance, torch.full((1, 1, 4, 4), expected), rtol=0, atol=1e-6)


def test_gradient_is_finite_where_the_student_is_dead() -> None:
    generator = torch.Generator().manual_seed(3)
    teacher = torch.randn(1, 8, 3, 3, generator=generator)
    student = torch.randn(1, 8, 3, 3, generator=generator)
    student[..., 1, 1] = 0.0
    student.requires_grad_()
    cosine_distance(teacher, student).sum().backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert (student.grad[..., 0, 0] != 0).any()


def test_matrices_are_not_in_the_checkpoint_but_move_with_the_module() -> None:
    module = AnomalyMap((64, 64), STRIDES)
    assert module.state_dict() == {}
    assert {b.dtype for b in module.double().buffers()} == {torch.float64}
