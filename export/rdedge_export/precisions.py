"""Makes the FP16 and INT8 graphs of an FP32 one: as low as the gate lets them, the worst layers put back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from rdedge.contract import Gate, Precision, QuantisationSpec, RangeMethod
from rdedge.errors import ExportError
from rdedge_export.fp16 import as_stored, unfit_for_fp16, with_fp16
from rdedge_export.gate import Distance, Gatekeeper, Sensitivity, map_cosines, put_back_until, run
from rdedge_export.graph_view import GraphView, Layer
from rdedge_export.observers import RANGE_METHODS, Observed, largest_magnitudes, observe
from rdedge_export.qdq import quantisable, quantised, tensors_to_observe

_PROBES = 8  # held-out frames on which kinds and layers are tried one by one
_ISLAND_SHARE = 0.25  # of the error that FP16 in the network costs anyway


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Good frames uint8 (n, H, W, 3) from which activation ranges are taken, and where they came from."""

    frames_u8: NDArray[np.uint8]
    sha256: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """A graph of lower precision that passed the gate, and what is told of it in the report."""

    precision: Precision
    model: ModelProto
    gate: Gate
    scores: NDArray[np.float32]  # of the gate's frames, good parts first
    sensitivities: list[Sensitivity] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Lowering:
    """From one FP32 graph to others; what both precisions need is found once."""

    def __init__(self, fp32: ModelProto, keeper: Gatekeeper):
        self._fp32 = fp32
        self._view = GraphView(fp32)
        self._keeper = keeper
        self._probes_u8 = keeper.frames.good_u8[:_PROBES]
        self._probe_maps = keeper.good.maps[:_PROBES]
        self._notes: list[str] = []
        self._fp16_nodes = self._find_fp16_nodes()

    def fp16(self) -> Lowered:
        """Everything in FP16 but islands. Raises ExportError if the gate refuses it."""
        layers = [layer for layer in self._view.layers() if layer.output in self._fp16_nodes]

        def build(kept_back: frozenset[str]) -> ModelProto:
            return with_fp16(self._fp32, self._fp16_nodes - {n.output for n in layers if n.name in kept_back})

        def build_alone(layer: Layer) -> ModelProto:
            return with_fp16(self._fp32, {layer.output})

        return self._lowered("fp16", build, build_alone, layers, None)

    def int8(self, calibration: Calibration) -> Lowered:
        """Convolutions in INT8, what is left in FP16. Raises ExportError if the gate refuses it."""
        layers = quantisable(self._fp32)
        if not layers:
            raise ExportError("no layer of this model can be INT8", remedy="export it without int8")
        observed = observe(self._fp32, tensors_to_observe(self._fp32, layers), calibration.frames_u8)

        def build_from(limits: dict[str, float], kept_back: frozenset[str]) -> ModelProto:
            whole = quantised(self._fp32, [n for n in layers if n.name not in kept_back], limits)
            return with_fp16(whole.model, self._fp16_nodes - whole.int8_nodes)

        method = self._best_method(observed, build_from)
        limits = observed.limits(method)
        spec = QuantisationSpec(
            method=method,
            images=observed.images,
            images_sha256=calibration.sha256,
            source=calibration.source,
        )
        return self._lowered(
            "int8",
            lambda kept_back: build_from(limits, kept_back),
            lambda layer: quantised(self._fp32, [layer], limits).model,
            layers,
            spec,
        )

    def _lowered(
        self,
        precision: Precision,
        build: Callable[[frozenset[str]], ModelProto],
        build_alone: Callable[[Layer], ModelProto],
        layers: Sequence[Layer],
        quantisation: QuantisationSpec | None,
    ) -> Lowered:
        """The gate's loop: the whole graph, then with ever more of the worst layers put back."""
        tried: dict[int, tuple[Distance, NDArray[np.float32]]] = {}
        ranked: list[Sensitivity] = []

        def names(k: int) -> frozenset[str]:
            return frozenset(s.layer for s in ranked[:k])

        def accepts(k: int) -> bool:
            distance, answers = self._keeper.measure(as_stored(build(names(k))))
            tried[k] = distance, answers.scores
            return self._keeper.accepts(distance)

        kept: int | None = 0
        is_whole = accepts(0)
        if precision == "int8" or not is_whole:
            ranked = self._sensitivities(build_alone, layers)
        if not is_whole:
            # A graph with most of its layers put back is the higher precision under another name.
            kept = put_back_until(accepts, max(1, len(layers) // 2))
        if kept is None:
            raise ExportError(
                f"{precision} is too far from fp32: {tried[0][0]}; with {max(tried)} of {len(layers)} layers put back: "
                f"{tried[max(tried)][0]}",
                remedy=f"export without {precision}, calibrate on more images, or allow more with --budget",
            )
        kept_back = [s.layer for s in ranked[:kept]]
        distance, scores = tried[kept]
        return Lowered(
            precision=precision,
            model=build(frozenset(kept_back)),
            gate=self._keeper.as_contract(distance, kept_back, quantisation),
            scores=scores,
            sensitivities=ranked,
            notes=list(self._notes),
        )

    def _find_fp16_nodes(self) -> frozenset[str]:
        """All nodes but islands, which stay FP32: kinds of the judging part that cost more than the network's own
        rounding does, with all behind them (one-channel maps: a Cast back would save nothing), and whatever is unfit.
        """
        nodes = set(self._view.nodes)
        judging = self._view.judging()
        frames_u8 = np.concatenate([self._keeper.frames.good_u8, self._keeper.frames.labelled_u8])
        unfit = unfit_for_fp16(self._fp32, largest_magnitudes(self._fp32, sorted(nodes), frames_u8))
        self._notes += [f"{name} stays FP32: {reason}" for name, reason in unfit.items()]
        allowed = self._error(nodes - judging - set(unfit)) * _ISLAND_SHARE
        islands = judging & set(unfit)
        for kind in sorted({self._view.nodes[name].op_type for name in judging - islands}):
            chosen = {name for name in judging - set(unfit) if self._view.nodes[name].op_type == kind}
            error = self._error(chosen)
            if not error <= allowed:
                islands |= chosen
                self._notes.append(
                    f"{kind} of the distance maps stays FP32: alone in FP16 it moves them by {error:.2g}"
                )
        for output, node in self._view.nodes.items():
            if any(name in islands for name in self._view.made_inputs(node)):
                islands.add(output)
        return frozenset(nodes - islands - set(unfit))

    def _error(self, fp16_nodes: set[str]) -> float:
        """99.9th percentile of the map's difference with these nodes in FP16; NaN where the map is."""
        maps = run(as_stored(with_fp16(self._fp32, fp16_nodes)), self._probes_u8).maps
        return float(np.quantile(np.abs(maps - self._probe_maps), 0.999))

    def _best_method(
        self, observed: Observed, build: Callable[[dict[str, float], frozenset[str]], ModelProto]
    ) -> RangeMethod:
        """The one whose graph has the highest map cosine on held-out good parts, never on labelled ones."""
        cosines = {}
        for method in RANGE_METHODS:
            answers = run(as_stored(build(observed.limits(method), frozenset())), self._keeper.frames.good_u8)
            cosines[method] = float(map_cosines(self._keeper.good.maps, answers.maps).mean())
            self._notes.append(f"calibrated by {method}: map cosine {cosines[method]:.5f}")
        return max(cosines, key=lambda method: cosines[method])

    def _sensitivities(self, build_alone: Callable[[Layer], ModelProto], layers: Sequence[Layer]) -> list[Sensitivity]:
        """Every layer alone in the lower precision, the costliest first."""
        costs = []
        for layer in layers:
            maps = run(as_stored(build_alone(layer)), self._probes_u8).maps
            costs.append(Sensitivity(layer.name, float(1.0 - map_cosines(self._probe_maps, maps).mean())))
        return sorted(costs, key=lambda cost: cost.map_cosine_loss, reverse=True)
