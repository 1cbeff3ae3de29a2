"""NVIDIA's own builder: TensorRT-RTX parses and builds on a machine without a GPU, so here nothing is pretended.

It cannot load what it built there, so inspecting and running it is for `rdedge engine` on a device.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from engine_graphs import tiny_graph
from fake_tensorrt import make_module
from onnx import TensorProto, numpy_helper

from rdedge.backends.trt_library import ErrorLog, load_tensorrt, version_of
from rdedge.errors import BackendError
from rdedge_export.engine import Plan, build_plan
from rdedge_export.fp16 import with_fp16
from rdedge_export.graph import graph_spec, onnx_graph
from rdedge_export.graph_view import GraphView
from rdedge_export.observers import largest_magnitudes
from rdedge_export.qdq import quantisable, quantised, tensors_to_observe
from rdedge_train.model import Detector

SIZE_HW = (256, 256)
KERNEL_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]{24,}")


@pytest.fixture(scope="session")
def rtx() -> Any:
    if platform.machine() != "x86_64":
        pytest.skip("NVIDIA makes TensorRT-RTX for x86-64 only")
    return load_tensorrt("tensorrt-rtx")


def build(rtx: Any, path: Path, precision: str, **changes: Any) -> Plan:
    options: dict[str, Any] = {"workspace_mb": 1024, "timing_cache": b"", "progress": lambda *step: None}
    return build_plan(rtx, path, precision, **(options | changes))  # type: ignore[arg-type]


def write_graphs(model: str, folder: Path, batch: int = 1) -> dict[str, Path]:
    """A model at 256x256 with random weights, as a bundle has it: FP32, FP16, and INT8 with FP16 around it; and INT8
    of the transposed and depthwise convolutions too. ``batch``: frames at a time.
    """
    torch.manual_seed(0)
    fp32 = onnx.load_from_string(onnx_graph(Detector(model, SIZE_HW), graph_spec(SIZE_HW, batch)))
    frames_u8 = np.random.default_rng(0).integers(0, 256, (2, *SIZE_HW, 3), dtype=np.uint8)
    view, layers = GraphView(fp32), quantisable(fp32)
    more = quantisable(fp32, with_transposed=True)
    more += [layer for layer in view.layers() if layer.is_depthwise]
    limits = largest_magnitudes(fp32, tensors_to_observe(fp32, more), frames_u8)
    models = {"fp32": fp32, "fp16": with_fp16(fp32, view.network())}
    for precision, chosen in (("int8", layers), ("int8_with_more", more)):
        int8 = quantised(fp32, chosen, limits)
        models[precision] = with_fp16(int8.model, view.network() - int8.int8_nodes)
    paths = {precision: folder / f"{precision}.onnx" for precision in models}
    for precision, graph in models.items():
        paths[precision].write_bytes(graph.SerializeToString())
    return paths


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_graphs("edge-lite0", tmp_path_factory.mktemp("edge"))


def test_the_edge_model_builds_in_every_precision(rtx: Any, graphs: dict[str, Path]) -> None:
    """Of its few megabytes of engine the source text of kernels, which the device compiles, is a large part, and INT8
    has more kinds of kernels: the ratios are of the rest. In INT8, depthwise weights are padded to many times theirs.
    """
    sizes, rest = {}, {}
    for precision, path in graphs.items():
        plan = build(rtx, path, precision.partition("_")[0])
        assert plan.is_strongly_typed and plan.build_s > 0 and plan.timing_cache == b""
        sizes[precision] = len(plan.engine)
        rest[precision] = len(plan.engine) - sum(map(len, KERNEL_TEXT.findall(plan.engine)))
        assert rest[precision] > 0.5 * path.stat().st_size
    print("edge-lite0", sizes, rest)
    assert sizes["fp16"] <= 0.7 * sizes["fp32"] and sizes["int8"] <= 0.5 * sizes["int8_with_more"], sizes
    assert rest["fp16"] <= 0.56 * rest["fp32"] and rest["int8"] <= 0.37 * rest["fp32"], rest


@pytest.mark.parametrize("model", ["resnet18", pytest.param("wide_resnet50_2", marks=pytest.mark.slow)])
def test_lower_precision_makes_a_smaller_engine(rtx: Any, model: str, tmp_path: Path) -> None:
    paths = write_graphs(model, tmp_path)
    sizes = {name: len(build(rtx, path, name.partition("_")[0]).engine) for name, path in paths.items()}
    print(model, {precision: f"{size / 1e6:.1f} MB" for precision, size in sizes.items()})
    assert sizes["fp16"] <= 0.55 * sizes["fp32"], sizes
    assert sizes["int8"] <= 0.35 * sizes["fp32"], sizes
    assert sizes["int8_with_more"] < 0.97 * sizes["int8"], "transposed convolutions in INT8 build, and shrink it"


def test_graphs_for_batches_build(rtx: Any, tmp_path: Path) -> None:
    for precision, path in write_graphs("edge-lite0", tmp_path, batch=4).items():
        assert build(rtx, path, precision.partition("_")[0]).is_strongly_typed


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_parsed_network_has_the_contracts_tensors(rtx: Any, graphs: dict[str, Path], precision: str) -> None:
    log = ErrorLog(rtx)
    network = rtx.Builder(log.logger).create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = rtx.OnnxParser(network, log.logger)
    assert parser.parse_from_file(str(graphs[precision])), log.errors
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    height, width = SIZE_HW
    assert {tensor.name: (tensor.dtype, tuple(tensor.shape)) for tensor in tensors} == {
        "frame": (rtx.uint8, (1, height, width, 3)),
        "anomaly_map": (rtx.float32, (1, 1, height, width)),
        "score": (rtx.float32, (1,)),
    }
    found = {layer.get_output(0).dtype for layer in (network.get_layer(i) for i in range(network.num_layers))}
    assert (rtx.float16 in found) == (precision != "fp32") and (rtx.int8 in found) == (precision == "int8")


def test_progress_is_reported_to_the_end(rtx: Any, graphs: dict[str, Path]) -> None:
    steps: list[tuple[str, int, int]] = []
    build(rtx, graphs["fp32"], "fp32", progress=lambda *step: steps.append(step))
    assert steps
    for phase in {name for name, *_ in steps}:
        done = [done for name, done, _ in steps if name == phase]
        assert done == sorted(set(done)) and (phase, done[-1], done[-1]) in steps


def test_a_build_is_interrupted(rtx: Any, graphs: dict[str, Path]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(rtx, graphs["fp32"], "fp32", progress=interrupt)


def no_graph() -> bytes:
    return b"not a graph"


def truncated() -> bytes:
    return tiny_graph("fp32")[:-40]


def unknown_node() -> bytes:
    model = onnx.load_from_string(tiny_graph("fp32"))
    model.graph.node[3].op_type = "Nonsense"
    return bytes(model.SerializeToString())


def weights_of_another_shape() -> bytes:
    model = onnx.load_from_string(tiny_graph("fp32"))
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(np.ones((1, 5, 1, 1), np.float32), "weights"))
    return bytes(model.SerializeToString())


def mixed_types() -> bytes:
    model = onnx.load_from_string(tiny_graph("fp32"))
    model.graph.node[0].attribute[0].i = TensorProto.FLOAT16  # its weights stay FP32
    return bytes(model.SerializeToString())


def without_nodes() -> bytes:
    model = onnx.load_from_string(tiny_graph("fp32"))
    del model.graph.node[:]
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    "hostile", [no_graph, truncated, unknown_node, weights_of_another_shape, mixed_types, without_nodes]
)
def test_a_graph_the_builder_cannot_build_is_refused_in_its_words(rtx: Any, hostile: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(hostile())
    with pytest.raises(BackendError, match=r"model\.onnx: (the ONNX parser refuses it|no engine can be built) \(.+\)"):
        build(rtx, path, "fp32")


def test_a_missing_graph_is_refused(rtx: Any, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="the ONNX parser refuses it"):
        build(rtx, tmp_path / "none.onnx", "fp32")


def test_the_stand_in_has_the_names_of_the_real_module(rtx: Any) -> None:
    fake = make_module("tensorrt_rtx-1.7.1")
    if not version_of(rtx).startswith("1.7.1"):
        pytest.skip("tests/trt_api describes 1.7.1")
    for name in ("Builder", "OnnxParser", "Runtime", "ICudaEngine", "IExecutionContext", "IBuilderConfig"):
        public = {member for member in dir(getattr(rtx, name)) if not member.startswith("_")}
        assert public == {member for member in dir(getattr(fake, name)) if not member.startswith("_")}, name
    for name in ("BuilderFlag", "NetworkDefinitionCreationFlag", "LayerType", "DataType"):
        real = {member: int(value) for member, value in getattr(rtx, name).__members__.items()}
        assert real == fake.fake.surface["enums"][name], name
