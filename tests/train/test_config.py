"""The settings of a run: what is refused, and what each family gets by default."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from rdedge.errors import UsageError
from rdedge_train.config import TrainConfig, default_epochs, default_head
from rdedge_train.model import MODELS, family_of

MakeConfig = Callable[..., TrainConfig]


def test_survives_the_run_file(make_config: MakeConfig) -> None:
    config = make_config(model="resnet18", head="plain")
    assert msgspec.json.decode(msgspec.json.encode(config), type=TrainConfig) == config


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("epochs", 0, ">= 1"),
        ("epochs", 10**400, "<= 1000000"),
        ("batch_size", 0, ">= 1"),
        ("batch_size", 10**20, "<= 1000000"),
        ("learning_rate", 0.0, "> 0.0"),
        ("learning_rate", float("nan"), "> 0.0"),
        ("learning_rate", float("inf"), "<= 10.0"),
        ("seed", -1, ">= 0"),
        ("seed", 2**64, "<= 9223372036854775807"),
        ("held_out_share", 0.0, "> 0.0"),
        ("held_out_share", 1.0, "< 1.0"),
        ("ocbe", "mff", "Invalid enum value 'mff'"),
        ("loss", "mse", "Invalid enum value 'mse'"),
        ("head", "soft", "Invalid enum value 'soft'"),
        ("tolerance", "all", "Invalid enum value 'all'"),
        ("colour", "rgb", "unknown field `colour`"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_values_out_of_range_are_named(make_config: MakeConfig, field: str, value: object, complaint: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        make_config(**{field: value})
    assert complaint in str(caught.value)
    assert field in str(caught.value)


def test_unknown_model(make_config: MakeConfig) -> None:
    with pytest.raises(UsageError, match=r"no model 'resnet19'; use one of: edge-lite0, .*wide_resnet50_2"):
        make_config(model="resnet19")


@pytest.mark.parametrize("size_hw", [(64, 65), (48, 64)], ids="{0[0]}x{0[1]}".format)
def test_sizes_must_divide_evenly(make_config: MakeConfig, size_hw: tuple[int, int]) -> None:
    spec = {"size_hw": size_hw, "colour_order": "rgb", "resize": "area+linear", "roi_xywh": None}
    with pytest.raises(UsageError, match=f"image size {size_hw[0]}x{size_hw[1]}; use multiples of 32 pixels"):
        make_config(input=spec)


@pytest.mark.parametrize("model", MODELS)
def test_paper_models_keep_the_papers_head_and_schedule(model: str) -> None:
    is_paper = family_of(model) == "paper"
    assert default_head(model) == ("plain" if is_paper else "residual")
    assert (default_epochs(model) == 200) is is_paper


@pytest.mark.parametrize(
    "fields",
    [
        {"head": "residual", "loss": "flattened"},
        {"head": "position", "loss": "squared"},
        {"model": "resnet18", "head": "residual", "loss": "squared"},
    ],
)
def test_heads_and_losses_that_do_not_go_together_are_refused(make_config: MakeConfig, fields: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="--head"):
        make_config(**fields)


def test_the_plain_head_can_tolerate_nothing(make_config: MakeConfig) -> None:
    with pytest.raises(UsageError, match=r"--head plain with --tolerate light; the plain head learns nothing"):
        make_config(head="plain", tolerance="light")


def test_a_run_from_before_tolerance_tolerated_nothing(make_config: MakeConfig) -> None:
    fields = msgspec.to_builtins(make_config())
    del fields["tolerance"]
    assert msgspec.convert(fields, TrainConfig).tolerance == "none"
