"""What an engine's inspector says becomes a precision a layer; an engine of another precision is refused."""

from __future__ import annotations

import json

import pytest

from rdedge.errors import BackendError
from rdedge_export.engine_layers import check_precision, dla_layers, layer_precisions

OLD = "Thirty-two wide channel vectorized row major Int8 format"


def layer(name: str, *types: str, **more: object) -> dict[str, object]:
    return {"Name": name, "Inputs": [], "Outputs": [{"Name": "x", "Format/Datatype": kind} for kind in types], **more}


@pytest.mark.parametrize(
    ("types", "precision"),
    [
        (["Row major linear FP32"], "fp32"),
        (["Float"], "fp32"),
        (["Row major linear FP16 format"], "fp16"),
        (["Channel major FP16 format where channel % 8 == 0"], "fp16"),
        (["Half"], "fp16"),
        (["Float", "Half"], "fp16"),
        ([OLD], "int8"),
        (["Half", "Int8"], "int8"),
        (["UInt8"], "other"),
        (["UInt8", "Half"], "fp16"),
        (["Float16"], "fp16"),
        (["BFloat16"], "other"),
        (["Int32"], "other"),
        (["N/A due to dynamic shapes"], "other"),
        ([], "other"),
    ],
)
def test_the_words_of_old_and_new_versions_are_understood(types: list[str], precision: str) -> None:
    assert layer_precisions(json.dumps({"Layers": [layer("a", *types)]})) == {"a": precision}


def test_inputs_and_weights_count_too() -> None:
    told = {
        "Layers": [
            layer("a", "Float", Inputs=[{"Name": "y", "Format/Datatype": "Half"}]),
            layer("b", "Float", Weights={"Type": "Int8", "Count": 9}),
            layer("c", "Float", Weights=0),
            {"Name": "d", "Outputs": [{"Name": "x", "Datatype": "Half"}]},
        ]
    }
    assert layer_precisions(json.dumps(told)) == {"a": "fp16", "b": "int8", "c": "fp32", "d": "fp16"}


@pytest.mark.parametrize(
    "told", ["", "[]", "{}", '{"Layers": ["conv1", "conv2"]}', '{"Layers": [{}]}', '{"Layers": 1}']
)
def test_an_engine_that_does_not_tell_is_refused(told: str) -> None:
    with pytest.raises(BackendError, match="does not tell its layers' precision; report this TensorRT version"):
        layer_precisions(told)


@pytest.mark.parametrize("kind", ["DLA", "Dla", "DlaLoadable", "ForeignNode", "Myelin", None])
def test_what_runs_on_dla_is_told_by_the_engine_or_by_the_builder(kind: str | None) -> None:
    more = {} if kind is None else {"LayerType": kind}
    nodes = [layer(f"{{ForeignNode[{name}]}}", "Half", **more) for name in ("a...b", "c", "d")]
    told = json.dumps({"Layers": [layer("frame to nvm", "Half", LayerType="Reformat"), *nodes]})
    announced = frozenset({"{ForeignNode[a...b]}", "{ForeignNode[d]}", "{ForeignNode[of another try]}"})
    if kind is not None and "dla" in kind.lower():
        assert dla_layers(told, frozenset()) == ("{ForeignNode[a...b]}", "{ForeignNode[c]}", "{ForeignNode[d]}")
    else:
        assert dla_layers(told, announced) == ("{ForeignNode[a...b]}", "{ForeignNode[d]}")
        with pytest.raises(BackendError, match="asked to use DLA, but none of its layers runs there; nothing was"):
            dla_layers(told, frozenset({"{ForeignNode[of another try]}"}))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_one_layer_of_the_precision_is_the_least(precision: str) -> None:
    check_precision(precision, {"a": "other", "b": precision})  # type: ignore[arg-type]
    others = {name: name for name in ("fp32", "fp16", "int8") if name != precision}
    message = f"asked to be {precision}, but of its 2 layers none is .they are: {', '.join(sorted(others))}.; nothing"
    with pytest.raises(BackendError, match=message):
        check_precision(precision, others)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match=r"of its 0 layers none is \(they are: none\)"):
        check_precision(precision, {})  # type: ignore[arg-type]
