"""FeatCal (arXiv:2605.13030): bring a merge's layers near to the experts' outputs, in order."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Calibration, Piece, RunContext, WeightSource, show_notes_on
from fusion_core.weights import Kernel
from fusion_regmean.blocks import blocks_of
from fusion_regmean.closed_forms import Layer, Means, has_closed_form, layers_of
from fusion_regmean.config import FeatCalConfig
from fusion_regmean.expert_passes import ExpertPasses
from fusion_regmean.layer_method import ForLayers
from fusion_regmean.live_model import LiveModel
from fusion_regmean.sources import merge_solved, weights_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from fusion_core import ModelPool
    from fusion_regmean.expert_passes import Pass


class FeatCal(ForLayers, Calibration[FeatCalConfig]):
    """Bring a merge's layers near to the experts' outputs, block by block (arXiv:2605.13030).

    Formula: a weight W minimises the sum over experts of E|W x - W_k x'|^2 / |E[x x']| +
    ridge * |W - A|^2. x are the layer's inputs after the calibrated blocks on expert k's examples,
    x_e its inputs in the expert, x' = teacher * x_e + (1 - teacher) * x, and the anchor is
    A = base + anchor * (merge - base). A bias is the mean remainder. A normalisation's weight and
    bias minimise the same for its outputs. Blocks are those of `regmean-plus-plus`, in forward
    order. All other tensors stay as they were merged.
    Options: `samples` (unlabeled examples per task; 256), `ridge` (0.05), `anchor` (factor; 2.0),
    `teacher` (share; 0.3). The defaults are the paper's.
    Source: arXiv:2605.13030 and the authors' code. Differences: the code counts positions of the
    last block other than the class token at a hundredth, this method knows no class token. The code
    calibrates a transformer's layers only, this method every layer that is called, except a head
    tied to embeddings. What no expert changes stays, such as biases and layers without an adapter.
    Packed experts stay as they were merged: the merge and an expert route other positions to them.

    Data: `samples` unlabeled examples per task, with all tokens of the answers that experts give.
    The decoder of an encoder-decoder sees the start of each answer alone. Memory: two live models,
    the solved tensors, the sums of one block, and up to 0.5 GB of inputs in the experts. Cost: per
    block and expert, a pass through the merge up to that block. Examples pass through an expert
    once per 0.5 GB of inputs, or once per block that has more. A resumed run starts again.
    """

    config_class = FeatCalConfig
    other_tensors = "left as they were merged"
    treats_vectors = True
    treats_packed = False

    def calibrate(
        self, merged: WeightSource, pool: ModelPool[Any], context: RunContext
    ) -> WeightSource:
        """Solve block by block; all other tensors stay lazy."""
        live = LiveModel(pool, merged, context, is_layer=has_closed_form, with_packed=False)
        solver = _BlockSolver(self.config, live, pool, context)
        layers = layers_of(live, blocks_of(live, pool, context))
        names = {name for block in layers for layer in block for name in layer.names}
        unchanged = {name for name in names if not solver.is_changed(name)}
        blocks = [
            [part for layer in block if (part := layer.without(unchanged))] for block in layers
        ]
        passes = ExpertPasses(live, pool, context, self.config.samples)
        solved: dict[str, Tensor] = {}
        total = len(blocks) * len(pool.experts)
        track = context.progress.track("calibrate in forward order", total=total, unit="passes")
        with track as advance, show_notes_on(advance):
            while blocks:
                for of_block in passes.of([[layer.weight for layer in block] for block in blocks]):
                    tensors = solver.solve(blocks.pop(0), of_block, advance)
                    live.put(tensors)
                    solved |= live.with_tied_names(tensors)
        self.warn_of_untreated({*solved, *unchanged}, pool, context)
        return merge_solved(solved, _AsMerged(), pool, context, extras={"merged": merged})


@dataclass
class _BlockSolver:
    """Solves the layers of one block after another."""

    config: FeatCalConfig
    live: LiveModel
    pool: ModelPool[Any]
    context: RunContext

    def __post_init__(self) -> None:
        self._base = weights_of(self.pool, self.pool.reference, self.context)
        self._experts = {
            name: weights_of(self.pool, source, self.context)
            for name, source in self.pool.experts.items()
        }

    def is_changed(self, name: str) -> bool:
        """Return whether an expert changes a tensor."""
        base = self._base.tensor(name)
        return any(not torch.equal(expert.tensor(name), base) for expert in self._experts.values())

    def solve(
        self,
        layers: Sequence[Layer],
        passes: Mapping[str, Iterable[Pass]],
        advance: Callable[[int], None],
    ) -> dict[str, Tensor]:
        """Return the solved parameters of a block's layers, by tensor name."""
        forms: dict[Layer, Any] = {}
        for expert, weights in self._experts.items():
            for layer, means in self._means(layers, passes[expert]).items():
                weight = weights.tensor(layer.weight)
                bias = None if layer.bias is None else weights.tensor(layer.bias)
                if layer not in forms:
                    forms[layer] = layer.closed_form(layer.module, weight)
                forms[layer].add(weight, bias, means)
            advance(1)
        return dict(item for layer, form in forms.items() for item in self._solve(layer, form))

    def _means(self, layers: Sequence[Layer], passes: Iterable[Pass]) -> dict[Layer, Means]:
        """Return the means of the layers' inputs in the merge and an expert, on its examples."""
        by_weight = {layer.weight: layer for layer in layers}
        means = defaultdict[Layer, Means](Means)

        def see(name: str, inputs: Tensor, expert_inputs: Tensor) -> None:
            layer = by_weight[name]
            targets = torch.lerp(inputs, expert_inputs, self.config.teacher)
            sums = layer.closed_form.sums_of(layer.module, inputs, targets)
            means[layer].add(len(inputs), sums)

        for one in passes:
            one.compare(self.live, see)
        return means

    def _solve(self, layer: Layer, form: Any) -> Iterator[tuple[str, Tensor]]:  # noqa: ANN401
        bias_anchor = None if layer.bias is None else self._anchor(layer.bias)
        weight, bias = form.solve(
            layer.weight, self._anchor(layer.weight), bias_anchor, self.config.ridge
        )
        yield layer.weight, weight
        if layer.bias is not None:
            yield layer.bias, bias

    def _anchor(self, name: str) -> Tensor:
        """Return base + anchor * (merge - base); the block still has its merged parameters."""
        base = self._base.tensor(name)
        merged = self.live.parameters[name].detach().to(base)
        return torch.lerp(base, merged, self.config.anchor)


class _AsMerged(Kernel):
    """The merge without changes."""

    def merge(self, piece: Piece) -> Tensor:
        return piece.merged
