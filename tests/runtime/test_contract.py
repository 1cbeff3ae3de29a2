"""contract.json is read strictly: what is missing, unknown, mistyped, out of range or edited is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rdedge.contract import CONTRACT_FILE, decode_contract, encode_contract
from rdedge.errors import BundleError, ContractError
from rdedge.fidelity import Gate, QuantisationSpec
from rdedge.good_parts import Threshold

PATH = Path("bundle/contract.json")
FREE_KEYS = ("files", "versions", "precisions")  # objects whose keys are names, not fields


@pytest.fixture
def contract(bundle: Path) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads((bundle / CONTRACT_FILE).read_bytes())
    return decoded


def fields_of(value: object, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The place of every field of the contract and of the objects in it."""
    if isinstance(value, dict):
        for key, below in value.items():
            if not (place and place[-1] in FREE_KEYS):
                yield (*place, key)
            yield from fields_of(below, (*place, key))


def owner_of(contract: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    for key in place[:-1]:
        contract = contract[key]
    return contract


def measured(**changes: Any) -> Gate:
    """What a good INT8 graph measures."""
    quantisation = QuantisationSpec(
        method="entropy", images=128, images_sha256="d" * 64, source="training images", fine_tuning=None
    )
    gate = Gate(
        good_frames=48,
        labelled_frames=30,
        map_cosine=0.999,
        p999_abs_map=0.002,
        score_rank_correlation=0.998,
        verdict_flips=0.0,
        auroc_change=-0.001,
        max_auroc_drop=0.005,
        max_verdict_flips=0.01,
        min_map_cosine=0.98,
        layers_kept_back=("stem",),
        quantisation=quantisation,
    )
    return msgspec.structs.replace(gate, **changes)


def refusal(data: bytes) -> str:
    with pytest.raises(ContractError) as caught:
        decode_contract(data, PATH)
    message = str(caught.value)
    assert message.startswith("bundle/contract.json: ")
    assert "export the bundle again" in message
    return message


def edited(contract: dict[str, Any], place: str, value: object) -> dict[str, Any]:
    *path, last = place.split(".")
    owner_of(contract, (*path, last))[last] = value
    return contract


def test_what_is_written_is_read_back_equal(bundle: Path) -> None:
    data = (bundle / CONTRACT_FILE).read_bytes()
    contract = decode_contract(data, PATH)
    assert contract.input.size_hw == (48, 64)
    assert encode_contract(contract) == data


def test_a_contract_error_is_a_bundle_error() -> None:
    assert issubclass(ContractError, BundleError)


def test_every_key_is_required(contract: dict[str, Any]) -> None:
    places = list(fields_of(contract))
    assert len(places) > 50
    for place in places:
        copy = json.loads(json.dumps(contract))
        del owner_of(copy, place)[place[-1]]
        assert f"missing required field `{place[-1]}`" in refusal(json.dumps(copy).encode())


def test_no_other_key_is_taken(contract: dict[str, Any]) -> None:
    for place in fields_of(contract):
        copy = json.loads(json.dumps(contract))
        owner_of(copy, place)["surprise"] = 1
        assert "unknown field `surprise`" in refusal(json.dumps(copy).encode())


def test_every_field_has_one_type(contract: dict[str, Any]) -> None:
    for place in fields_of(contract):
        if place == ("schema_version",):
            continue  # has its own message, below
        copy = json.loads(json.dumps(contract))
        owner_of(copy, place)[place[-1]] = [{"not": "this"}]
        assert "xpected" in refusal(json.dumps(copy).encode())


@pytest.mark.parametrize("version", [0, 3, 4, "5", 1.5, None, {"major": 1}])
def test_another_schema_version_is_named(contract: dict[str, Any], version: object) -> None:
    message = refusal(json.dumps(contract | {"schema_version": version}).encode())
    assert f"schema version {json.dumps(version)}, this rdedge reads 5" in message


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("input.size_hw", [48, 16], ">= 32"),
        ("input.size_hw", [48, 5000], "<= 4096"),
        ("input.size_hw", [48], "length 2"),
        ("input.colour_order", "bgr", "Invalid enum value 'bgr'"),
        ("input.roi_xywh", [-1, 0, 32, 32], ">= 0"),
        ("input.size_hw", [64, 48], "does not fit size_hw (64, 48)"),
        ("graph.opset", 16, ">= 17"),
        ("graph.frame.shape", [1, 48, 64, 4], "frame must be uint8 (N, H, W, 3)"),
        ("graph.frame.shape", [1, 48, 64], "frame must be uint8 (N, H, W, 3)"),
        ("graph.frame.dtype", "float32", "frame must be uint8 (N, H, W, 3)"),
        ("graph.frame.shape", [0, 48, 64, 3], ">= 1"),
        ("graph.anomaly_map.shape", [1, 1, 24, 32], "anomaly_map must be float32 (1, 1, 48, 64)"),
        ("graph.score.shape", [2], "score must be float32 (1,)"),
        ("model.parameters", -1, ">= 0"),
        ("model.weights_sha256", "A" * 64, "matching regex"),
        ("precisions", {}, "at least one precision"),
        ("precisions", {"fp64": {}}, "Invalid enum value 'fp64'"),
        ("precisions.fp32.file", "other.onnx", "names other.onnx, which is not under files"),
        ("precisions.fp32.image_threshold.expected_rate", 1.5, "<= 1.0"),
        ("precisions.fp32.image_threshold.rate_low", 0.5, "the interval of the rate is empty: 0.5 to 0.04"),
        ("precisions.fp32.image_threshold.rule", "guess", "Invalid enum value 'guess'"),
        ("precisions.fp32.gate", {}, "missing required field `good_frames`"),
        ("good_frames.brightness.samples", 0, ">= 1"),
        ("good_frames.sharpness.quantiles", [1.0] * 20, "expected 21 finite, ascending quantiles"),
        ("good_frames.contrast.quantiles", [1.0] * 20 + [0.9], "expected 21 finite, ascending quantiles"),
        ("precisions.fp32.good_scores.quantiles", [], "expected 21 finite, ascending quantiles"),
        ("calibration.frames", 33, "<= 32"),
        ("calibration.frames", 3, "3 calibration frames, but 2 of them under files"),
        ("calibration.frames", 0, "0 calibration frames, but 2 of them under files"),
        ("files", {"model.onnx": "short"}, "matching regex"),
    ],
)
def test_values_have_their_range(contract: dict[str, Any], place: str, value: object, says: str) -> None:
    assert says in refusal(json.dumps(edited(contract, place, value)).encode())


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/passwd", "a\\b", "..", ".", "", "./x", "a//b", "a/", "a\0b", "a\nb", "C:\\x"],
)
def test_a_file_name_stays_in_the_bundle(
    contract: dict[str, Any], reseal: Callable[[dict[str, object]], bytes], name: str
) -> None:
    data = reseal(edited(contract, "files", contract["files"] | {name: "0" * 64}))
    assert "leaves the bundle" in refusal(data)


def with_int8(bundle: Path, reseal: Callable[[dict[str, object]], bytes], gate: Gate | None) -> bytes:
    """A contract with an INT8 graph that measured ``gate``."""
    contract = json.loads((bundle / CONTRACT_FILE).read_bytes())
    spec = contract["precisions"]["fp32"] | {"gate": json.loads(msgspec.json.encode(gate))}
    return reseal(contract | {"precisions": contract["precisions"] | {"int8": spec}})


def test_what_the_gate_measured_is_read_back(bundle: Path, reseal: Callable[[dict[str, object]], bytes]) -> None:
    assert decode_contract(with_int8(bundle, reseal, measured()), PATH).precisions["int8"].gate == measured()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"map_cosine": 1.1}, "<= 1.0"),
        ({"verdict_flips": -0.1}, ">= 0.0"),
        ({"score_rank_correlation": "high"}, "Expected `float | null`"),
        ({"quantisation": None}, "quantisation is of int8 and of nothing else"),
    ],
    ids=["cosine", "flips", "correlation", "not quantised"],
)
def test_a_gate_has_its_ranges(
    bundle: Path, reseal: Callable[[dict[str, object]], bytes], changes: dict[str, object], says: str
) -> None:
    assert says in refusal(with_int8(bundle, reseal, measured(**changes)))


def test_no_precision_but_fp32_goes_without_a_gate(bundle: Path, reseal: Callable[[dict[str, object]], bytes]) -> None:
    assert "precision int8 lacks its gate" in refusal(with_int8(bundle, reseal, None))


def test_fp32_is_not_measured_against_itself(contract: dict[str, Any]) -> None:
    gate = json.loads(msgspec.json.encode(measured()))
    assert "precision fp32 has a gate" in refusal(json.dumps(edited(contract, "precisions.fp32.gate", gate)).encode())


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"1e999", b"null", b'"0.5"'])
def test_a_threshold_is_a_finite_number(bundle: Path, value: bytes) -> None:
    data = (bundle / CONTRACT_FILE).read_bytes()
    changed = data.replace(b'"value": 0.5', b'"value": ' + value)
    assert changed != data
    refusal(changed)


def limit(value: float, rate_low: float = 0.0, rate_high: float = 0.05) -> Threshold:
    return Threshold(
        value=value,
        rule="quantile",
        target_rate=0.01,
        expected_rate=0.01,
        rate_low=rate_low,
        rate_high=rate_high,
        confidence=0.95,
        parts=99,
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_threshold_that_is_not_finite_cannot_be_made(value: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        limit(value)


def test_the_interval_of_a_rate_is_not_empty() -> None:
    assert limit(0.5, rate_low=0.1, rate_high=0.1).rate_low == 0.1
    with pytest.raises(ValueError, match=r"interval of the rate is empty: 0\.2 to 0\.1"):
        limit(0.5, rate_low=0.2, rate_high=0.1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"value": 0.5', b'"value": 0.6'),
        (b'"seed": 7', b'"seed": 8'),
        (b"darkness", b"Darkness"),
        (b'"seed": 7', b'"seed":7'),
        (b"1e-6", b"1E-6"),
        (b"  ", b"\t"),
    ],
    ids=["threshold", "seed", "name", "space", "same number", "tab"],
)
def test_an_edit_is_noticed_even_where_it_changes_nothing(bundle: Path, old: bytes, new: bytes) -> None:
    data = (bundle / CONTRACT_FILE).read_bytes()
    assert old in data
    assert "was changed after export" in refusal(data.replace(old, new, 1))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"{}",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe",
        b'{"created_utc": "\xff"}',
        b'{"a":' * 100_000,
        b'{"schema_version": ' + b"[" * 100_000,
        b'{"schema_version": ' + b"9" * 10_000 + b"}",
    ],
    ids=["empty", "null", "list", "half", "no keys", "BOM", "UTF-16", "not UTF-8", "deep", "deeper", "long number"],
)
def test_what_is_no_contract_is_refused(data: bytes) -> None:
    refusal(data)


def test_export_cannot_write_what_the_line_would_refuse(bundle: Path) -> None:
    contract = decode_contract((bundle / CONTRACT_FILE).read_bytes(), PATH)
    with pytest.raises(ContractError, match="was changed after export"):
        encode_contract(msgspec.structs.replace(contract, created_utc="later"))
    parity = msgspec.structs.replace(contract.precisions["fp32"].parity, max_abs_map=float("nan"))
    spec = msgspec.structs.replace(contract.precisions["fp32"], parity=parity)
    with pytest.raises(ContractError, match="max_abs_map"):
        encode_contract(msgspec.structs.replace(contract, precisions={"fp32": spec}))
