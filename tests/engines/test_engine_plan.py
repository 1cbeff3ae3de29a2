"""The builder code on every TensorRT: what each version has is used, what it lacks is not touched."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from engine_graphs import tiny_graph
from fake_tensorrt import VERSIONS, make_module
from plan_checks import PRECISIONS, check_all, check_build, check_dla, header_of

import rdedge.backends.trt
import rdedge.backends.trt_library
from rdedge.backends.trt_library import version_of
from rdedge.errors import BackendError
from rdedge_export import engine

SOURCES = {module.__name__: module for module in (engine, rdedge.backends.trt, rdedge.backends.trt_library)}


def build(trt: Any, path: Path, precision: str = "fp32", **changes: Any) -> engine.Plan:
    options: dict[str, Any] = {"workspace_mb": None, "timing_cache": b"", "progress": lambda *step: None}
    return engine.build_plan(trt, path, precision, **(options | changes))  # type: ignore[arg-type]


@pytest.fixture
def graph_path(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_graph("fp32"))
    return path


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_builds_every_precision_as_the_graph_says(version: str, precision: str, tmp_path: Path) -> None:
    check_build(engine, version, precision, tmp_path)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("version", ["10.3.0", "10.13.3", "10.16.1"])
def test_where_strong_typing_fails_flags_are_tried(version: str, precision: str, tmp_path: Path) -> None:
    check_build(engine, version, precision, tmp_path, refuses_strong=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_dla_is_asked_for_as_each_version_wants_it(version: str, tmp_path: Path) -> None:
    check_dla(engine, version, tmp_path)


def test_the_builders_own_workspace_is_left_alone(trt: Any, graph_path: Path) -> None:
    assert header_of(build(trt, graph_path).engine)["workspace"] is None


def test_all_errors_of_the_parser_are_told(trt: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(
        BackendError, match=r"bad\.onnx: the ONNX parser refuses it \(ModelImporter: .*; second error\)"
    ):
        build(trt, tmp_path / "bad.onnx")
    assert trt.fake.builds == 0


def test_a_build_that_fails_tells_the_builders_reason(trt: Any, graph_path: Path) -> None:
    trt.fake.fails_to_build = True
    with pytest.raises(
        BackendError, match=r"no engine can be built \(no kernel image for this GPU\); a small board may"
    ):
        build(trt, graph_path)


def test_a_library_without_a_gpu_tells_so(graph_path: Path) -> None:
    trt = make_module("10.16.1")

    def nothing(*_: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt.Builder = nothing
    with pytest.raises(BackendError, match=r"no engine builder \(it does not say why\); see what `rdedge doctor` says"):
        build(trt, graph_path)


def test_ctrl_c_stops_the_build(graph_path: Path) -> None:
    trt = make_module("10.3.0")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(trt, graph_path, progress=interrupt)
    assert trt.fake.builds == 1, "not tried once more"


def test_the_version_is_found_where_the_package_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = make_module("8.6.1")
    assert version_of(trt) == "8.6.1"
    del trt.__version__
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{name} of the package index")
    assert version_of(trt) == "tensorrt of the package index"


# What some version lacks, and where our code asks for it first.
GUARDED = {
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "BuilderFlag.FP16",
    "BuilderFlag.INT8",
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS",
    "LayerType.CAST",
    "IProgressMonitor",
    "IProgressMonitor.__init__",
    "IBuilderConfig.progress_monitor",
    "ILayer.precision",
    "ILayer.set_output_type",
    "OnnxParserFlag",
    "OnnxParserFlag.ADJUST_FOR_DLA",
    "OnnxParser.set_flag",
}


def names_in_sources() -> set[str]:
    """``trt.A.B`` in our code, also through ``flags`` and in getattr and hasattr, as A.B."""
    names = set()
    for module in SOURCES.values():
        text = (
            inspect.getsource(module)
            .replace("self._trt.", "trt.")
            .replace("flags.", "trt.NetworkDefinitionCreationFlag.")
            .replace("kinds.", "trt.LayerType.")
            .replace("getattr(kinds,", "getattr(trt.LayerType,")
        )
        text = text.replace('getattr(trt, "OnnxParserFlag", None)', "trt.OnnxParserFlag")
        text = re.sub(r"[hg][ae][st]attr\((trt[\w.]*|flags), \"(\w+)\"", r"(\1.\2", text)
        text = text.replace("(flags.", "(trt.NetworkDefinitionCreationFlag.")
        for node in ast.walk(ast.parse(text)):
            chain = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if re.fullmatch(r"trt(\.\w+)+", chain):
                names.add(chain.removeprefix("trt."))
    return names


def has(surface: dict[str, Any], name: str) -> bool:
    kind, _, member = name.rpartition(".")
    if kind in surface["enums"]:
        return member in surface["enums"][kind]
    if kind:
        facts = surface["classes"].get(kind, {})
        members = [*facts.get("methods", ()), *facts.get("properties", ()), *facts.get("class_attrs", ())]
        return member in members or any(has(surface, f"{base}.{member}") for base in facts.get("bases", ()))
    return name in surface["enums"] or name in surface["classes"] or name in surface["module_attr_values"]


def test_every_name_we_use_is_in_every_version_or_asked_for_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    surfaces = [make_module(version).fake.surface for version in VERSIONS]
    touched: set[str] = names_in_sources() - {"__name__"}
    assert {"OnnxParser", "BuilderFlag.FP16", "TensorIOMode.INPUT", "uint8", "ILogger.Severity"} <= touched
    for version in VERSIONS:
        trt = make_module(version)
        (tmp_path / "int8.onnx").write_bytes(tiny_graph("int8"))
        build(trt, tmp_path / "int8.onnx", "int8", workspace_mb=1)
        trt.fake.dla_cores = 1
        (tmp_path / "fp16.onnx").write_bytes(tiny_graph("fp16"))
        build(trt, tmp_path / "fp16.onnx", "fp16", dla_core=0)
        touched |= trt.fake.used
    # Of the runtime classes, by hand from rdedge.backends.trt; the tests on the stand-in run them.
    touched |= {f"Runtime.{name}" for name in ("deserialize_cuda_engine", "DLA_core")}
    touched |= {f"ICudaEngine.{name}" for name in re.findall(r"_engine\.(\w+)", inspect.getsource(rdedge.backends.trt))}
    touched |= {
        f"IExecutionContext.{name}" for name in re.findall(r"_context\.(\w+)", inspect.getsource(rdedge.backends.trt))
    }
    touched |= {"EngineInspector.get_engine_information"}
    lacking = {name for name in touched for surface in surfaces if not has(surface, name)}
    assert lacking <= GUARDED
    assert lacking >= GUARDED - {"IProgressMonitor.__init__"}, "a name that every version has needs no guard"
    assert len(touched) > 50


# Each place where versions part, and the code without it: some version must then fail.
MUTATIONS: list[tuple[str, str]] = [
    ('hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")', "True"),
    ('hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")', "False"),
    ('hasattr(trt.BuilderFlag, "FP16")', "True"),
    ('hasattr(trt.BuilderFlag, "FP16")', "False"),
    ('if hasattr(flags, "EXPLICIT_BATCH"):', "if True:"),
    ('if hasattr(flags, "EXPLICIT_BATCH"):', "if False:"),
    ("    if is_strongly_typed:\n", "    if False:\n"),
    ("    if is_strongly_typed:\n", "    if True:\n"),
    ("int(flags.EXPLICIT_BATCH)", "1"),
    ("int(flags.STRONGLY_TYPED)", "1"),
    ("int(flags.STRONGLY_TYPED)", "0"),
    ("if not is_strongly_typed:", "if True:"),
    ("if not is_strongly_typed:", "if False:"),
    ('    if precision == "fp32":\n', "    if True:\n"),
    ("    config.set_flag(trt.BuilderFlag.FP16)\n", ""),
    ('    if precision == "int8":\n        config', "    if False:\n        config"),
    ("    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)\n", ""),
    ("        _hold_fp32(trt, network)\n", "        pass\n"),
    ('warnings.simplefilter("ignore", DeprecationWarning)', 'warnings.simplefilter("error", DeprecationWarning)'),
    ('getattr(kinds, "CAST", kinds.IDENTITY)', "kinds.CAST"),
    ('getattr(kinds, "CAST", kinds.IDENTITY)', "kinds.IDENTITY"),
    ("    layer.precision = trt.float32\n", ""),
    ("        layer.set_output_type(i, trt.float32)\n", "        pass\n"),
    ("        sums = layer.type in (kinds.REDUCE, kinds.MATRIX_MULTIPLY)\n", "        sums = False\n"),
    ("        if layer.type == kinds.REDUCE:\n", "        if False:\n"),
    ("            held.update(names)\n        elif", "            pass\n        elif"),
    ('if trt.__name__ == "tensorrt_rtx":', "if False:"),
    ('if trt.__name__ == "tensorrt_rtx":', "if True:"),
    ("cache is None or not config.set_timing_cache(cache, False)", "config.set_timing_cache(cache, False) is None"),
    ('if not hasattr(trt, "IProgressMonitor"):', "if False:"),
    ('if not hasattr(trt, "IProgressMonitor"):', "if True:"),
    ("    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED", "    pass"),
    ("    config.clear_flag(trt.BuilderFlag.TF32)", "    pass"),
    ('hasattr(getattr(trt, "OnnxParserFlag", None), "ADJUST_FOR_DLA")', "True"),
    ('hasattr(getattr(trt, "OnnxParserFlag", None), "ADJUST_FOR_DLA")', "False"),
    ('getattr(trt, "OnnxParserFlag", None)', "trt.OnnxParserFlag"),
    ("if is_for_dla and ", "if "),
    ("is_for_dla=dla_core is not None", "is_for_dla=False"),
    ("    if dla_core is not None and can_be_weak:\n", "    if False:\n"),
    ("    if dla_core is not None and can_be_weak:\n", "    if dla_core is not None:\n"),
    ('        if precision == "int8":\n            raise', "        if False:\n            raise"),
    ("    if dla_core >= cores:\n", "    if False:\n"),
    ("    if dla_core >= cores:\n", "    if dla_core > cores:\n"),
    ("    config.default_device_type = trt.DeviceType.DLA\n", ""),
    ("    config.DLA_core = dla_core\n", ""),
    ("    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)\n", ""),
    ("        if dla_core is not None:\n            _place_on_dla(trt, config, dla_core)\n", ""),
    ("                if msg.startswith(_ON_DLA):\n", "                if False:\n"),
    ('.strip().removesuffix(",")', ".strip()"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("old", "new"), MUTATIONS, ids=[f"{i}: {new.strip()}" for i, (_, new) in enumerate(MUTATIONS)])
def test_removing_a_version_branch_makes_a_build_fail(
    old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = inspect.getsource(engine)
    assert source.count(old) == 1, "a mutation names one place"
    damaged = types.ModuleType("damaged")
    monkeypatch.setitem(sys.modules, "damaged", damaged)  # dataclasses look their module up
    exec(compile(source.replace(old, new), "damaged", "exec"), damaged.__dict__)
    with pytest.raises((AssertionError, AttributeError, TypeError, BackendError, DeprecationWarning)):
        check_all(damaged, tmp_path)


def test_the_list_of_mutations_has_every_version_branch() -> None:
    source = inspect.getsource(engine)
    branches = re.findall(r"[hg][ae][st]attr\([^()]*\"\w+\"[^()]*\)|trt\.__name__ == \"\w+\"", source)
    branches += re.findall(r"hasattr\(getattr\([^()]*\), \"\w+\"\)", source)
    assert len(branches) == 8
    for branch in branches:
        assert any(branch in old for old, _ in MUTATIONS), branch


def test_undamaged_code_passes_all_of_it(tmp_path: Path) -> None:
    assert check_all(engine, tmp_path) == len(VERSIONS) * 3 + 3 * 3
