"""RegMean++ (arXiv:2508.03121): layers are given what the merged layers before them make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_adapting import moments_of
from fusion_core import Algorithm, RunContext, WeightSource, noting
from fusion_regmean.config import RegMeanConfig
from fusion_regmean.experts import mean_of, over, tasks_of, weights_of
from fusion_regmean.forward import blocks_of
from fusion_regmean.layered import ForLayers
from fusion_regmean.live import Live, examples
from fusion_regmean.regmean import LayerSums

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_adapting import Moments
    from fusion_core import ModelPool
    from fusion_regmean.forward import Block


class RegMeanPlusPlus(ForLayers, Algorithm[RegMeanConfig]):
    """RegMean's least squares, block by block, over inputs that come from the merged prefix.

    In forward order, each block of layers is that of expert k while examples of its task pass
    through, and the blocks before it are merged ones. A block is a layer of a transformer, as in
    the paper and in the authors' code in FusionBench: tensors whose names are the same up to the
    first number. What is not the weight of a linear layer is the experts' mean, embeddings and
    buffers from the start. Differs as `regmean` does.

    Tasks: `logits` has to pass each batch through the model whenever it is called, for every block
    and expert anew. Scores or features that it keeps from an earlier call would be those of other
    weights; a task that calls no module is refused. It may call the model several times per batch,
    each time with an `attention_mask` if there is padding. A layer then has the sum over its calls.
    Blocks are solved in the order of their first calls, so a call that depends on what a later
    block returned in an earlier call (decoding token by token) sees the experts' mean there.

    Data: as `regmean`. Memory: one live model, what is solved, and the sums of one block. Cost: for
    every block and expert a pass of the examples through the whole model. A run that is resumed
    begins anew.
    """

    config_class = RegMeanConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Solve block by block; what is not a linear layer stays lazy."""
        mean = context.merged(pool, mean_of(pool))
        live = Live(pool, mean, context)
        blocks = blocks_of(live, pool, context)
        solved: dict[str, Tensor] = {}
        passes = len(blocks) * len(pool.experts)
        track = context.progress.track("solve in forward order", total=passes, unit="passes")
        with track as advance, noting(advance):
            for block in blocks:
                sums = LayerSums(self.config)
                for expert in pool.experts:
                    weights = weights_of(pool, pool.experts[expert], context)
                    live.put({name: weights.tensor(name) for name in block.members})
                    sums.add(weights, self._moments(live, block, pool.task_of(expert), context))
                    advance(1, note=f"{block.name} of {expert}")
                found = sums.solve()
                live.put({name: mean.tensor(name) for name in block.members} | found)
                solved |= {twin: each for name, each in found.items() for twin in live.tied(name)}
        self.say_what_is_left(solved, pool, context)
        return over(mean_of(pool), solved, pool, context)

    def _moments(
        self, live: Live, block: Block, name: str, context: RunContext
    ) -> dict[str, Moments]:
        task = tasks_of(context).adaptive(name)
        layers = {layer: live.parameters[layer] for layer in block.layers}
        return moments_of(live.model, layers, task, examples(task, self.config.samples, context))
