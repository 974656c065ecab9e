"""RegMean++ (arXiv:2508.03121): RegMean over the inputs that merged layers give to later ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_adapting import compute_moments
from fusion_core import Algorithm, RunContext, WeightSource, show_notes_on
from fusion_regmean.blocks import blocks_of
from fusion_regmean.config import RegMeanConfig
from fusion_regmean.layer_method import ForLayers
from fusion_regmean.live_model import LiveModel, examples
from fusion_regmean.regmean import LayerSums
from fusion_regmean.sources import LayerTensors, mean_of, merge_solved, tasks_of, weights_of

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_adapting import Moments
    from fusion_core import ModelPool
    from fusion_regmean.blocks import Block


class RegMeanPlusPlus(ForLayers, Algorithm[RegMeanConfig]):
    """Apply RegMean in forward order, to inputs from the merged layers before (arXiv:2508.03121).

    Formula: W = (sum of W_k G_k) (sum of G_k)^-1 for linear layers, with G_k = E[x x'] of the
    layer's inputs on expert k's task. While examples pass through, a block has expert k's
    parameters and all blocks before it have merged ones. A block is a layer of a transformer, as in
    the paper and in the authors' code in FusionBench: tensors with the same name up to its first
    number. All other tensors are averaged, embeddings and buffers from the start.
    Options: those of `regmean`, with the same differences from the paper.

    Tasks: `logits` must pass each batch through the model whenever it is called, for every block
    and expert. Scores or features of an earlier call would belong to other weights, and a task that
    calls no module is an error. It may call the model several times per batch, each time with an
    `attention_mask` if there is padding; a layer then sums over its calls. Blocks are solved in the
    order of their first calls. A call that depends on the output of a later block in an earlier
    call (decoding token by token) gets the experts' mean there.

    Data: as `regmean`. Memory: one live model, the solved tensors, and the sums of one block. Cost:
    one pass of the examples through the whole model per block and expert. A resumed run starts
    again.
    """

    config_class = RegMeanConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Solve block by block; all other tensors stay lazy."""
        merged = context.merge(pool, mean_of(pool))
        live, mean = LiveModel(pool, merged, context), LayerTensors(merged, pool)
        blocks = blocks_of(live, pool, context)
        solved: dict[str, Tensor] = {}
        passes = len(blocks) * len(pool.experts)
        track = context.progress.track("solve in forward order", total=passes, unit="passes")
        with track as advance, show_notes_on(advance):
            for block in blocks:
                sums = LayerSums(self.config)
                for expert in pool.experts:
                    weights = weights_of(pool, pool.experts[expert], context)
                    live.put({name: weights.tensor(name) for name in block.members})
                    sums.add(weights, self._moments(live, block, expert, pool, context))
                    advance(1, note=f"{block.name} of {expert}")
                tensors = sums.solve()
                live.put({name: mean.tensor(name) for name in block.members} | tensors)
                solved |= live.with_tied_names(tensors)
        self.warn_of_untreated(solved, pool, context)
        return merge_solved(solved, mean_of(pool), pool, context)

    def _moments(
        self, live: LiveModel, block: Block, expert: str, pool: ModelPool[Any], context: RunContext
    ) -> dict[str, Moments]:
        task = tasks_of(context).adaptive(pool.task_of(expert))
        names, batches = {*block.layers}, examples(task, self.config.samples, context)
        parameters = live.parameters_of(names)
        gathered = compute_moments(live.model, parameters, task, batches, layout=pool.live_layout)
        return {name: layer for name, layer in gathered.items() if name in names}
