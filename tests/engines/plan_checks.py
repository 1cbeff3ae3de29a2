"""What must hold of every build on every version; the tests run it on the code as it is and on damaged code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_tensorrt_parts as parts
from engine_graphs import tiny_graph
from fake_tensorrt import VERSIONS, make_module

from rdedge.errors import BackendError

PRECISIONS = ("fp32", "fp16", "int8")
BODY = {"fp32": "FLOAT", "fp16": "HALF", "int8": "INT8"}


def header_of(engine: bytes) -> dict[str, Any]:
    """What the fake's plan says of itself."""
    header: dict[str, Any] = json.loads(engine[len(parts.MAGIC) + 32 :].partition(b"\n")[0])
    return header


def check_build(
    engine_module: Any, version: str, precision: str, folder: Path, *, refuses_strong: bool = False
) -> None:
    """Raises AssertionError, AttributeError or BackendError where a build is not what it should be."""
    trt = make_module(version)
    trt.fake.refuses_strong_typing = refuses_strong
    path = folder / f"{precision}.onnx"
    path.write_bytes(tiny_graph(precision))
    steps: list[tuple[str, int, int]] = []
    own_cache = f"FAKECACHE {trt.fake.version}".encode()
    for saved in (b"", own_cache, b"of another GPU"):
        plan = engine_module.build_plan(
            trt, path, precision, workspace_mb=256, timing_cache=saved, progress=lambda *step: steps.append(step)
        )
        assert plan.timing_cache == (b"" if trt.fake.is_rtx else own_cache)
    header = header_of(plan.engine)
    layers = dict(header["layers"])
    assert layers["Conv body"] == BODY[precision]
    assert layers["Sub anomaly_map"] == layers["ReduceMax score"] == "FLOAT", "the FP32 island was given away"
    if precision == "fp16":
        assert layers["Mul brightness"] == "FLOAT", "what follows a cast was given away"
    if precision == "int8":
        assert layers["Mul product"] == layers["ReduceSum brightness"] == "FLOAT", "the sums were given away"
    assert header["dla_core"] is None and not header["is_adjusted_for_dla"] and plan.dla_layers == frozenset()
    assert header["is_detailed"] and not header["has_tf32"] and header["workspace"] == 256 << 20
    has_strong = "STRONGLY_TYPED" in trt.fake.surface["enums"]["NetworkDefinitionCreationFlag"]
    assert plan.is_strongly_typed == (has_strong and not refuses_strong)
    has_monitor = "IProgressMonitor" in trt.fake.surface["classes"]
    attempts = 2 if refuses_strong else 1
    expected = [("Building engine", 2, 3), ("Building engine", 3, 3)] * 3 * attempts
    assert steps == (expected if has_monitor else [])


def check_failure(engine_module: Any, version: str, folder: Path) -> None:
    """A build that fails for good is told as such, not as a name that the version lacks."""
    trt = make_module(version)
    trt.fake.fails_to_build = True
    path = folder / "int8.onnx"
    path.write_bytes(tiny_graph("int8"))
    try:
        engine_module.build_plan(trt, path, "int8", workspace_mb=None, timing_cache=b"", progress=lambda *step: None)
    except BackendError as exc:
        assert "no kernel image for this GPU" in exc.problem
    else:
        raise AssertionError("a failed build went unnoticed")


def check_dla(engine_module: Any, version: str, folder: Path) -> None:
    """What DLA takes is placed on the core asked for; Q/DQ only where types are strong; without a core, no build."""
    path = folder / "dla.onnx"

    def build(precision: str, cores: int) -> tuple[Any, Any]:
        trt = make_module(version)
        trt.fake.dla_cores = cores
        path.write_bytes(tiny_graph(precision))
        options = {"workspace_mb": None, "timing_cache": b"", "progress": lambda *step: None, "dla_core": 1}
        return trt, engine_module.build_plan(trt, path, precision, **options)

    enums = make_module(version).fake.surface["enums"]
    is_weak = "FP16" in enums["BuilderFlag"]
    _, plan = build("fp16", 2)
    header = header_of(plan.engine)
    assert plan.dla_layers == {"{ForeignNode[Mul x...Conv body]}"} and header["dla_core"] == 1
    assert dict(header["layers"])["Sub anomaly_map"] == "FLOAT" and plan.is_strongly_typed != is_weak
    assert header["is_adjusted_for_dla"] == ("ADJUST_FOR_DLA" in enums.get("OnnxParserFlag", {}))
    if not is_weak:
        assert build("int8", 2)[1].dla_layers == {"{ForeignNode[Conv body...Conv body]}"}
    for precision, cores, reason in [
        ("fp16", 1, "offers 1 on"),
        ("fp16", 0, "offers 0 on"),
        ("int8", 2, "takes no quant"),
    ]:
        if cores == 2 and not is_weak:
            continue
        try:
            build(precision, cores)
        except BackendError as exc:
            assert reason in exc.problem and "--dla" in exc.remedy, exc
        else:
            raise AssertionError(f"DLA was used: {reason}")


def check_all(engine_module: Any, folder: Path) -> int:
    """Every version and precision, and the second try of those that have one; how many builds were checked."""
    builds = 0
    for version in VERSIONS:
        enums = make_module(version).fake.surface["enums"]
        has_both = "FP16" in enums["BuilderFlag"] and "STRONGLY_TYPED" in enums["NetworkDefinitionCreationFlag"]
        check_failure(engine_module, version, folder)
        check_dla(engine_module, version, folder)
        for precision in PRECISIONS:
            check_build(engine_module, version, precision, folder)
            builds += 1
            if has_both:
                check_build(engine_module, version, precision, folder, refuses_strong=True)
                builds += 1
    return builds
