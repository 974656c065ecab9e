"""FeatCal (arXiv:2605.13030): a merge's layers brought near to the experts' outputs, in order."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion_adapting import build_live
from fusion_core import Calibration, Piece, RunContext, WeightSource, noting
from fusion_core.weights import Kernel
from fusion_regmean.calibrated import Layer, Means, is_calibrated, layers_of
from fusion_regmean.config import FeatCalConfig
from fusion_regmean.experts import over, tasks_of, weights_of
from fusion_regmean.forward import blocks_of
from fusion_regmean.layered import ForLayers
from fusion_regmean.live import Live, Pair, examples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from fusion_core import ModelPool


class FeatCal(ForLayers, Calibration[FeatCalConfig]):
    """Linear and normalisation layers of a merge solved anew, block by block in forward order.

    With x what the calibrated prefix gives a layer on expert k's examples, x_e what the expert's
    own prefix gives it, and x' = `teacher` * x_e + (1 - `teacher`) * x, a weight minimises the sum
    over experts of E|W x - W_k x'|^2 / |E[x x^T]|, plus `ridge` * |W - A|^2 with the anchor A =
    base + `anchor` * (merge - base); a bias is what is left on average, and a normalisation's
    weight and bias minimise the same of its own. Blocks are those of `regmean-plus-plus`. Defaults
    are the paper's. Follows the authors' code, but knows no class token: they count other positions
    of the last block at a hundredth; and they calibrate a transformer's layers only, this whatever
    layer is called. What else there is stays as it was merged.

    Data: `samples` unlabeled examples a task. Memory: two live models, what is solved, and the sums
    of one block. Cost: for every block and expert two passes of the examples and the reading of an
    expert. A run that is resumed begins anew.
    """

    config_class = FeatCalConfig
    otherwise = "left as they were merged"
    treats_vectors = True

    def calibrate(
        self, merged: WeightSource, pool: ModelPool[Any], context: RunContext
    ) -> WeightSource:
        """Solve block by block; what has no closed form stays as lazy as the merge."""
        live = Live(pool, merged, context, is_layer=is_calibrated)
        blocks = blocks_of(live, pool, context)
        work = _Work(self.config, live, pool, context)
        solved: dict[str, Tensor] = {}
        passes = len(blocks) * len(pool.experts)
        track = context.progress.track("calibrate in forward order", total=passes, unit="passes")
        with track as advance, noting(advance):
            for block in blocks:
                found = work.solve(layers_of(live, block.layers), advance)
                live.put(found)
                solved |= {twin: each for name, each in found.items() for twin in live.tied(name)}
        self.say_what_is_left(solved, pool, context)
        return over(_AsMerged(), solved, pool, context, extras={"merged": merged})


@dataclass
class _Work:
    """The closed forms of one block after the other."""

    config: FeatCalConfig
    live: Live
    pool: ModelPool[Any]
    context: RunContext

    def solve(self, layers: Sequence[Layer], advance: Callable[[int], None]) -> dict[str, Tensor]:
        """Return what is solved of a block's layers, by tensor name."""
        sums: dict[Layer, Any] = {}
        for expert, source in self.pool.experts.items():
            weights = weights_of(self.pool, source, self.context)
            for layer, seen in self._seen(expert, layers).items():
                weight = weights.tensor(layer.weight)
                bias = None if layer.bias is None else weights.tensor(layer.bias)
                if layer not in sums:
                    sums[layer] = layer.sums(layer.module, weight)
                sums[layer].add(weight, bias, seen)
            advance(1)
        return {name: each for layer in sums for name, each in self._solved(layer, sums[layer])}

    def _seen(self, expert: str, layers: Sequence[Layer]) -> dict[Layer, Means]:
        """Return what is seen of layers in the merge and in an expert, on its task's examples."""
        named = {layer.weight: layer for layer in layers}
        model = build_live(self.pool, self.pool.experts[expert], self.context.device)
        pair, seen = Pair(self.live, model, named), defaultdict[Layer, Means](Means)

        def see(name: str, given: Tensor, theirs: Tensor) -> None:
            layer, wanted = named[name], torch.lerp(given, theirs, self.config.teacher)
            seen[layer].add(len(given), layer.sums.see(layer.module, given, wanted))

        task = tasks_of(self.context).adaptive(self.pool.task_of(expert))
        for batch in examples(task, self.config.samples, self.context):
            pair.show(task, batch, see)
        return seen

    def _solved(self, layer: Layer, sums: Any) -> Iterator[tuple[str, Tensor]]:  # noqa: ANN401
        bias = None if layer.bias is None else self._anchor(layer.bias)
        found = sums.solve(layer.weight, self._anchor(layer.weight), bias, self.config.ridge)
        yield layer.weight, found[0]
        if layer.bias is not None:
            yield layer.bias, found[1]

    def _anchor(self, name: str) -> Tensor:
        """Return base + anchor * (merge - base); the block is as it was merged."""
        base = weights_of(self.pool, self.pool.reference, self.context).tensor(name)
        merged = self.live.parameters[name].detach().to(base)
        return torch.lerp(base, merged, self.config.anchor)


class _AsMerged(Kernel):
    """The merge as it was."""

    def merge(self, piece: Piece) -> Tensor:
        return piece.merged
