"""Makes the FP16 and INT8 graphs of an FP32 one: as low as the gate lets them, the worst layers put back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from rdedge.contract import Precision
from rdedge.errors import ExportError
from rdedge.fidelity import Gate, QuantisationSpec, RangeMethod
from rdedge_export.fp16 import FP16_MAX, as_stored, unfit_for_fp16, with_fp16
from rdedge_export.gate import Distance, Gatekeeper, Sensitivity, put_back_until, run
from rdedge_export.graph_view import GraphView, Layer
from rdedge_export.map_cosine import map_cosines
from rdedge_export.observers import RANGE_METHODS, Observed, largest_magnitudes, observe
from rdedge_export.parity import Answers
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
    good_map_cosine: float  # mean over the held-out good parts
    sensitivities: list[Sensitivity] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Lowering:
    """From one FP32 graph to others; what both precisions need is found once."""

    def __init__(self, fp32: ModelProto, keeper: Gatekeeper, *, ranks_layers: bool = True):
        """``ranks_layers``: measure for the report what each INT8 layer costs, also where none has to be put back."""
        self._fp32 = fp32
        self._view = GraphView(fp32)
        self._keeper = keeper
        self._ranks_layers = ranks_layers
        self._probes_u8 = keeper.frames.good_u8[:_PROBES]
        self._probe_maps = run(fp32, self._probes_u8).maps
        frames_u8 = np.concatenate([keeper.frames.good_u8, keeper.frames.labelled_u8])
        self._unfit = unfit_for_fp16(fp32, largest_magnitudes(fp32, sorted(self._view.nodes), frames_u8))
        self._notes = [f"{name} stays FP32: {reason}" for name, reason in self._unfit.items()]
        self._allowed = self._error(self._view.network() - set(self._unfit)) * _ISLAND_SHARE
        self._fp16_nodes = self._find_fp16_nodes()
        self._fp16_constants = self._find_fp16_constants()

    def fp16(self) -> Lowered:
        """Everything in FP16 but islands. Raises ExportError if the gate refuses it."""
        layers = [layer for layer in self._view.layers() if layer.output in self._fp16_nodes]

        def build(kept_back: frozenset[str]) -> ModelProto:
            chosen = self._fp16_nodes - {layer.output for layer in layers if layer.name in kept_back}
            return with_fp16(self._fp32, chosen, self._fp16_constants)

        def build_alone(layer: Layer) -> ModelProto:
            return with_fp16(self._fp32, {layer.output})

        return self._lowered("fp16", build, build_alone, layers, None)

    def int8(self, calibration: Calibration, *, with_transposed: bool = False) -> Lowered:
        """Convolutions in INT8, what is left in FP16. Raises ExportError if the gate refuses it."""
        layers = quantisable(self._fp32, with_transposed=with_transposed)
        if not layers:
            raise ExportError("no layer of this model can be INT8", remedy="export it without int8")
        observed = observe(self._fp32, tensors_to_observe(self._fp32, layers), calibration.frames_u8)

        def build_from(limits: dict[str, float], kept_back: frozenset[str]) -> ModelProto:
            whole = quantised(self._fp32, [n for n in layers if n.name not in kept_back], limits)
            return with_fp16(whole.model, self._fp16_nodes - whole.int8_nodes, self._fp16_constants)

        method = self._best_method(observed, build_from)
        limits = observed.limits(method)
        spec = QuantisationSpec(
            method=method,
            images=observed.images,
            images_sha256=calibration.sha256,
            source=calibration.source,
            fine_tuning=None,
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
        tried: dict[int, tuple[Distance, Answers]] = {}
        ranked: list[Sensitivity] = []

        def names(k: int) -> frozenset[str]:
            return frozenset(s.layer for s in ranked[:k])

        def accepts(k: int) -> bool:
            distance, answers = self._keeper.measure(as_stored(build(names(k))))
            tried[k] = distance, answers
            return self._keeper.accepts(distance)

        kept: int | None = 0
        is_whole = accepts(0)
        if not is_whole or (precision == "int8" and self._ranks_layers):
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
        distance, answers = tried[kept]
        good = self._keeper.good.maps
        return Lowered(
            precision=precision,
            model=build(frozenset(kept_back)),
            gate=self._keeper.as_contract(distance, kept_back, quantisation),
            scores=answers.scores,
            good_map_cosine=float(map_cosines(good, answers.maps[: len(good)]).mean()),
            sensitivities=ranked,
            notes=list(self._notes),
        )

    def _find_fp16_nodes(self) -> frozenset[str]:
        """All nodes but islands, which stay FP32: groups of the judging part that cost more than the network's own
        rounding does, with all behind them (mostly one-channel maps: a Cast back would save nothing), and whatever is
        unfit. A group is a kind of node, or one node with a large constant.
        """
        judging = self._view.judging()
        islands = judging & set(self._unfit)
        groups: dict[str, set[str]] = defaultdict(set)
        for name in judging - islands:
            node = self._view.nodes[name]
            large = self._view.large_constants(node)
            groups[f"{node.op_type} with {large[0]}" if large else f"{node.op_type} of the distance maps"].add(name)
        for group, chosen in sorted(groups.items()):
            error = self._error(chosen)
            if not error <= self._allowed:
                islands |= chosen
                self._notes.append(f"{group} stays FP32: alone in FP16 it moves the map by {error:.2g}")
        for output, node in self._view.nodes.items():
            if any(name in islands for name in self._view.made_inputs(node)):
                islands.add(output)
        return frozenset(set(self._view.nodes) - islands - set(self._unfit))

    def _find_fp16_constants(self) -> frozenset[str]:
        """The large constants of FP32 nodes, such as statistics by position, that lose nothing by half the bytes."""
        found = set()
        for output in self._view.nodes.keys() - self._fp16_nodes:
            for name in self._view.large_constants(self._view.nodes[output]):
                fits = np.abs(self._view.weight(name)).max() <= FP16_MAX
                if fits and self._error(set(), {name}) <= self._allowed:
                    found.add(name)
        return frozenset(found)

    def _error(self, fp16_nodes: set[str], fp16_constants: set[str] | None = None) -> float:
        """99.9th percentile of the map's difference with these in FP16; NaN where the map is."""
        graph = with_fp16(self._fp32, fp16_nodes, fp16_constants or set())
        maps = run(as_stored(graph), self._probes_u8).maps
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
