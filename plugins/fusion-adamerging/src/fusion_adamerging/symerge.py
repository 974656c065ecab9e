"""SyMerge (arXiv:2412.19098): coefficients and one layer per task, learned together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_adamerging.coefficient_search import COEFFICIENTS, CoefficientSearch
from fusion_adamerging.config import SyMergeConfig
from fusion_adamerging.task_layers import TaskLayers, choose_leaves
from fusion_core.weights import Linear, as_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_adapting import LiveMerge
    from fusion_core import AdaptiveTask, ModelPool, RunContext
    from fusion_core.weights import WeightSource


class SyMerge(CoefficientSearch[SyMergeConfig, TaskLayers]):
    """Merging coefficients and one layer per task, learned together from unlabeled data.

    The merge is AdaMerging's: base + sum over experts of lambda_kl * task vector. While the
    examples of a task pass through the model, the task's tensors replace the merge's. They start as
    those of the task's expert. The search minimises the sum over tasks of the mean KL divergence of
    the predictions from the expert's. `fusion_core.load_for_task(directory, task)` returns the
    weights of a task: the merge with the task's tensors. The merge alone is not what the paper
    measures; there these tensors keep the coefficient `init`.

    The paper's layer is the classifier of a task. Classifiers are not merged here, so the last
    linear layer of the merged model takes that role. As in the authors' code it starts as the
    expert's and is learned from the first step. The authors' code uses the expert's hard labels,
    and ignores examples on which the merge is more certain than the expert. This one uses the
    paper's soft labels, and all examples.

    Data: unlabeled examples. Cost: that of AdaMerging, without passes that tasks share. Memory:
    that of AdaMerging, plus four times the tensors of all tasks.
    """

    config_class = SyMergeConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Search, and return the lazy merge."""
        experts = list(pool.experts)
        merged = context.merge_matrices(pool, Linear((self.config.init,) * len(experts)))
        coefficients, learned = self.search(pool, merged, context)
        for name, content in coefficients.files(COEFFICIENTS).items():
            context.save(name, content)
        context.save_task_tensors(learned.by_task())
        return context.merge(pool, Linear(coefficients.by_tensor(experts)))

    def make_learned(
        self,
        pool: ModelPool[Any],
        live: LiveMerge,
        tasks: Sequence[AdaptiveTask],
        context: RunContext,
    ) -> TaskLayers:
        """Return the coefficients and the tasks' tensors, which start as the experts'."""
        leaves = []
        if live.leaves:  # otherwise every expert equals the base
            example = self.batches(context).of(tasks[0], 0).part(0, 1)
            leaves = choose_leaves(live, self.config.own, tasks[0], example)
        start = {task.name: as_weights(pool.expert_of(task.name), pool.base) for task in tasks}
        experts, device = list(pool.experts), context.device
        return TaskLayers(live, experts, device, self.config, leaves=leaves, start=start)
