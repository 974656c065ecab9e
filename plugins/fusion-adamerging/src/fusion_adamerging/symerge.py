"""SyMerge (arXiv:2412.19098): coefficients, and with them one layer for each task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_adamerging.coefficient_search import COEFFICIENTS, CoefficientSearch
from fusion_adamerging.config import SyMergeConfig
from fusion_adamerging.own_layers import OwnLayers, own_leaves
from fusion_core.weights import Linear, as_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_adapting import LiveMerge
    from fusion_core import AdaptiveTask, ModelPool, RunContext
    from fusion_core.weights import WeightSource


class SyMerge(CoefficientSearch[SyMergeConfig, OwnLayers]):
    """Merging coefficients and a layer of each task's own, learned together from unlabeled data.

    The merge is AdaMerging's, base + sum over experts of lambda_kl * task vector. While a task's
    examples pass, its own tensors stand in the places of the merge's; they begin as those of the
    task's expert. What is minimised is the sum over tasks of the mean distance (KL divergence) of
    predictions from those of the task's expert. For a task the weights are the merge with the
    task's own tensors: `fusion_core.load_for_task(directory, task)`; the model alone, in which
    these tensors keep the coefficient `init`, is not what the paper measures.

    The paper's own layer is a task's classifier, which is not fused here; of what is, the last
    linear layer stands for it. As the authors' code does, it begins as the expert's, and takes
    part from the first step. That code takes the expert's hard labels, and leaves out those of
    which the merge is more certain than the expert; this the soft ones of the paper, and all.

    Data: unlabeled examples. Cost: AdaMerging's, without passes that tasks share. Memory: beside
    AdaMerging's four times the own tensors of all tasks.
    """

    config_class = SyMergeConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Search; the merge itself stays lazy."""
        experts = list(pool.experts)
        merged = context.merged_matrices(pool, Linear((self.config.init,) * len(experts)))
        found, learned = self.searched(pool, merged, context)
        for name, content in found.files(COEFFICIENTS).items():
            context.save(name, content)
        context.save_task_tensors(learned.by_task())
        return context.merged(pool, Linear(found.by_tensor(experts)))

    def learned(
        self,
        pool: ModelPool[Any],
        live: LiveMerge,
        tasks: Sequence[AdaptiveTask],
        context: RunContext,
    ) -> OwnLayers:
        """Return coefficients and own tensors, these as the experts have them."""
        leaves = []
        if live.leaves:  # else every expert is the base
            first = self.batches(context).of(tasks[0], 0).part(0, 1)
            leaves = own_leaves(live, self.config.own, tasks[0], first)
        start = {task.name: as_weights(pool.expert_of(task.name), pool.base) for task in tasks}
        experts, device = list(pool.experts), context.device
        return OwnLayers(live, experts, device, self.config, leaves=leaves, start=start)
