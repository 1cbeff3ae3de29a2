"""The DeepStream folder: only keys and values that nvinfer documents, and a graph equal to the bundle's own."""

from __future__ import annotations

import configparser
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import rdedge_export.deepstream
from rdedge.backends.ort import OnnxRuntimeBackend
from rdedge.backends.trt_library import ErrorLog, load_tensorrt
from rdedge.bundle import Bundle, open_bundle
from rdedge.errors import ExportError, UsageError
from rdedge_export.deepstream import as_planes, planar_graph, write_deepstream
from rdedge_export.fp16 import with_fp16
from rdedge_export.graph_view import GraphView

Copied = Callable[[Path], Path]


def one_of(*allowed: int) -> Callable[[str], bool]:
    return lambda text: int(text) in allowed


def at_least(least: int) -> Callable[[str], bool]:
    return lambda text: int(text) >= least


def numbers(text: str) -> bool:
    return all(math.isfinite(float(part)) for part in text.split(";"))


# The [property] group, by the table "Gst-nvinfer property group supported keys" of
# https://docs.nvidia.com/deepstream/text/DS_plugin_gst-nvinfer.md and, where that gives no range, by what
# src/gst-plugins/gst-nvinfer/gstnvinfer_property_parser.cpp of github.com/NVIDIA/DeepStream refuses.
DOCUMENTED: dict[str, Callable[[str], bool]] = {
    "num-detected-classes": at_least(1),
    "net-scale-factor": lambda text: float(text) > 0,
    "model-file": bool,
    "proto-file": bool,
    "int8-calib-file": bool,
    "batch-size": lambda text: 1 <= int(text) <= 1024,
    "input-tensor-from-meta": one_of(0, 1),
    "tensor-meta-pool-size": at_least(1),
    "model-engine-file": bool,
    "onnx-file": bool,
    "enable-dbscan": one_of(0, 1),
    "labelfile-path": bool,
    "mean-file": bool,
    "gie-unique-id": at_least(1),
    "operate-on-gie-id": at_least(-1),
    "operate-on-class-ids": numbers,
    "interval": at_least(0),
    "input-object-min-width": at_least(0),
    "input-object-min-height": at_least(0),
    "input-object-max-width": at_least(0),
    "input-object-max-height": at_least(0),
    "network-mode": one_of(0, 1, 2, 3),
    "offsets": numbers,
    "output-blob-names": lambda text: all(text.split(";")),
    "parse-bbox-func-name": bool,
    "custom-lib-path": bool,
    "model-color-format": one_of(0, 1, 2),
    "classifier-async-mode": one_of(0, 1),
    "process-mode": one_of(1, 2),
    "classifier-threshold": lambda text: float(text) >= 0,
    "secondary-reinfer-interval": at_least(0),
    "output-tensor-meta": one_of(0, 1),
    "output-instance-mask": one_of(0, 1),
    "enable-dla": one_of(0, 1),
    "use-dla-core": at_least(0),
    "network-type": one_of(0, 1, 2, 3, 100),
    "maintain-aspect-ratio": one_of(0, 1),
    "symmetric-padding": one_of(0, 1),
    "parse-classifier-func-name": bool,
    "custom-network-config": bool,
    "segmentation-threshold": lambda text: float(text) >= 0,
    "segmentation-output-order": one_of(0, 1),
    "workspace-size": at_least(0),
    "force-implicit-batch-dim": one_of(0, 1),
    "output-io-formats": bool,
    "layer-device-precision": bool,
    "engine-create-func-name": bool,
    "cluster-mode": one_of(1, 2, 3, 4),
    "filter-out-class-ids": numbers,
    "scaling-filter": one_of(*range(7)),
    "scaling-compute-hw": one_of(0, 1, 2),
    "infer-dims": lambda text: len([int(part) for part in text.split(";") if int(part) > 0]) == 3,
    "network-input-order": one_of(0, 1),
    "crop-objects-to-roi-boundary": one_of(0, 1),
    "gpu-id": at_least(0),
    "strongly-typed": one_of(0, 1),
}


def read_config(path: Path) -> dict[str, str]:
    """GLib key file, as nvinfer reads it: groups, key=value, lines that begin with a hash."""
    parser = configparser.ConfigParser(
        delimiters="=", comment_prefixes="#", inline_comment_prefixes=None, interpolation=None, strict=True
    )
    parser.optionxform = str  # type: ignore[assignment]  # keys keep their case
    parser.read_string(path.read_text())
    assert parser.sections() == ["property"]
    return dict(parser["property"])


def run(graph: bytes, bundle: Bundle, frame_u8: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [bundle.contract.graph.anomaly_map.name, bundle.contract.graph.score.name]
    return list(session.run(names, {bundle.contract.graph.frame.name: as_planes(frame_u8)}))


def test_the_configuration_is_what_nvinfer_documents(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert write_deepstream(bundle, "fp32", tmp_path / "ds") <= 1e-5
    assert sorted(path.name for path in (tmp_path / "ds").iterdir()) == [
        "README.txt",
        "config_infer_primary.txt",
        "model.onnx",
    ]
    keys = read_config(tmp_path / "ds/config_infer_primary.txt")
    for key, value in keys.items():
        assert key in DOCUMENTED and DOCUMENTED[key](value), f"{key}={value}"
    model = onnx.load(tmp_path / "ds" / keys["onnx-file"])
    frame = model.graph.input[0].type.tensor_type
    assert frame.elem_type == TensorProto.FLOAT, "nvinfer feeds nothing else"
    batch, *planes = (dim.dim_value for dim in frame.shape.dim)
    assert [int(part) for part in keys["infer-dims"].split(";")] == planes and int(keys["batch-size"]) == batch == 1
    assert keys["output-blob-names"].split(";") == [output.name for output in model.graph.output]
    decides_itself = {"network-type": "100", "output-tensor-meta": "1"}
    feeds_pixels = {"net-scale-factor": "1.0", "model-color-format": "0", "maintain-aspect-ratio": "0"}
    assert keys.items() >= (decides_itself | feeds_pixels | {"network-mode": "0", "strongly-typed": "1"}).items()
    assert "offsets" not in keys and "mean-file" not in keys, "the graph normalises"


def test_thresholds_and_region_are_told(tiny_bundle: Path, copied: Copied, tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    cut = msgspec.structs.replace(bundle.contract.input, roi_xywh=(4, 5, 60, 70))
    bundle = Bundle(bundle.path, msgspec.structs.replace(bundle.contract, input=cut))
    write_deepstream(bundle, "fp32", tmp_path / "ds")
    precision = bundle.contract.precisions["fp32"]
    for name in ("README.txt", "config_infer_primary.txt"):
        text = (tmp_path / "ds" / name).read_text()
        assert repr(precision.image_threshold.value) in text and repr(precision.pixel_threshold.value) in text
    assert "src-crop=4:5:60:70" in (tmp_path / "ds/README.txt").read_text()


def in_fp16(bundle: Bundle) -> onnx.ModelProto:
    model = onnx.load(bundle.graph_path("fp32"))
    view = GraphView(model)
    return with_fp16(model, set(view.nodes) - set(view.judging()))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_planes_give_the_same_answers(tiny_bundle: Path, tmp_path: Path, precision: str) -> None:
    bundle = open_bundle(tiny_bundle)
    model = onnx.load(bundle.graph_path("fp32")) if precision == "fp32" else in_fp16(bundle)
    (tmp_path / "own.onnx").write_bytes(model.SerializeToString())
    own = OnnxRuntimeBackend(tmp_path / "own.onnx", bundle.contract.graph)
    planar = planar_graph(model, bundle.contract.graph)
    noise = np.random.default_rng(0).integers(0, 256, (1, *bundle.contract.input.size_hw, 3), dtype=np.uint8)
    for frame_u8 in (noise, np.zeros_like(noise), np.full_like(noise, 255), bundle.calibration_frames()[:1]):
        expected = own.infer(frame_u8)
        anomaly_map, score = run(planar, bundle, frame_u8)
        np.testing.assert_allclose(anomaly_map, expected.anomaly_map, rtol=0, atol=1e-6)
        np.testing.assert_allclose(score, expected.score, rtol=0, atol=1e-6)
    swapped, _ = run(planar, bundle, noise[..., ::-1])
    assert np.abs(swapped - own.infer(noise).anomaly_map).max() > 1e-4, "the order of colours matters"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="NVIDIA makes TensorRT-RTX for x86-64 only")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_nvidias_builder_takes_it_as_nvinfer_gives_it(tiny_bundle: Path, precision: str) -> None:
    """nvinfer makes the batch dynamic and sets a profile of one picture (TrtModelBuilder::configExplicitOptions)."""
    bundle = open_bundle(tiny_bundle)
    model = onnx.load(bundle.graph_path("fp32")) if precision == "fp32" else in_fp16(bundle)
    rtx = load_tensorrt("tensorrt-rtx")
    log = ErrorLog(rtx)
    builder = rtx.Builder(log.logger)
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert rtx.OnnxParser(network, log.logger).parse(planar_graph(model, bundle.contract.graph)), log.errors
    frame, config, profile = (
        network.get_input(0),
        builder.create_builder_config(),
        builder.create_optimization_profile(),
    )
    assert frame.dtype == rtx.float32
    shape = tuple(frame.shape)
    profile.set_shape(frame.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    frame.shape = (-1, *shape[1:])
    assert builder.build_serialized_network(network, config) is not None, log.errors


def test_a_graph_of_another_beginning_is_refused(tiny_bundle: Path) -> None:
    graph = open_bundle(tiny_bundle).contract.graph
    source = onnx.load(open_bundle(tiny_bundle).graph_path("fp32"))
    for perm in ([0, 2, 3, 1], [0, 3, 2, 1]):
        model = onnx.ModelProto.FromString(source.SerializeToString())
        del model.graph.node[1].attribute[:]
        model.graph.node[1].attribute.append(helper.make_attribute("perm", perm))
        with pytest.raises(ExportError, match="does not begin with a cast and a transpose of its frame; export the"):
            planar_graph(model, graph)
    model = onnx.ModelProto.FromString(source.SerializeToString())
    model.graph.node.append(helper.make_node("Identity", [model.graph.node[0].output[0]], ["elsewhere"]))
    with pytest.raises(ExportError, match="does not begin with"):
        planar_graph(model, graph)


@pytest.mark.parametrize("change", [0.01, float("nan")])
def test_a_graph_that_answers_otherwise_is_not_written(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: float
) -> None:
    def spoilt(model: onnx.ModelProto, graph: Any) -> bytes:
        sound = onnx.ModelProto.FromString(planar_graph(model, graph))
        name = sound.graph.output[0].name
        maker = next(node for node in sound.graph.node if name in node.output)
        maker.output[list(maker.output).index(name)] = "sound"
        for node in sound.graph.node:
            node.input[:] = ["sound" if item == name else item for item in node.input]
        sound.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(change), "change"))
        sound.graph.node.append(helper.make_node("Add", ["sound", "change"], [name]))
        return bytes(sound.SerializeToString())

    monkeypatch.setattr(rdedge_export.deepstream, "planar_graph", spoilt)
    with pytest.raises(ExportError, match=r"the graph for planes differs by .* of the map's peak"):
        write_deepstream(open_bundle(tiny_bundle), "fp32", tmp_path / "ds")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    with pytest.raises(UsageError, match=r"has no int8 graph \(it has: fp32\)"):
        write_deepstream(bundle, "int8", tmp_path / "ds")
    (tmp_path / "ds").touch()
    with pytest.raises(UsageError, match="ds already exists; name another folder or remove it first"):
        write_deepstream(bundle, "fp32", tmp_path / "ds")
    frame = msgspec.structs.replace(bundle.contract.graph.frame, shape=(2, *bundle.contract.graph.frame.shape[1:]))
    graph = bundle.contract.graph
    batched = msgspec.structs.replace(
        graph,
        frame=frame,
        anomaly_map=msgspec.structs.replace(graph.anomaly_map, shape=(2, *graph.anomaly_map.shape[1:])),
        score=msgspec.structs.replace(graph.score, shape=(2,)),
    )
    contract = msgspec.structs.replace(bundle.contract, graph=batched)
    with pytest.raises(UsageError, match="was exported for batches of 2; export it again for single pictures"):
        write_deepstream(Bundle(bundle.path, contract), "fp32", tmp_path / "other")
