"""AdaMerging (arXiv:2310.02575): coefficients learned by entropy minimisation, without labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from fusion_adamerging.coefficients import Coefficients
from fusion_adamerging.config import AdaMergingConfig
from fusion_adamerging.live_merge import LiveMerge
from fusion_core.algorithm import Algorithm, RunContext
from fusion_core.errors import FusionError
from fusion_core.task_pool import Split
from fusion_core.weights import Linear, WeightSource

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core.model_pool import ModelPool
    from fusion_core.task_pool import TaskPool


class AdaMerging(Algorithm[AdaMergingConfig]):
    """base + sum over experts of lambda_kl * task vector, the lambdas learned from unlabeled data.

    Minimises the sum over tasks of the mean entropy of the merged model's predictions, with Adam
    (betas 0.9, 0.999). A *layer* is one parameter tensor, by its canonical name; floating-point
    tensors that are not parameters (running statistics) keep the coefficient `init` layer-wise, and
    share their expert's task-wise. Ends in the same lazy linear combination as task arithmetic.
    """

    config_class = AdaMergingConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Search (or load) the coefficients; the merge itself stays lazy."""
        experts, names = list(pool.experts), list(pool.reference.infos)
        if self.config.coefficients is not None:
            path = self.config.coefficients
            found = Coefficients.load(path, experts=experts, names=names)
        else:
            found = self._search(pool, context)
        context.save("coefficients.json", found.as_json())
        return context.merged(pool, Linear(found.by_tensor(names, experts)))

    def _search(self, pool: ModelPool[Any], context: RunContext) -> Coefficients:
        if context.tasks is None:
            raise FusionError("adamerging needs tasks with unlabeled data")
        live = LiveMerge(pool, context.device)
        shape = (len(pool.experts), len(live.leaves) if self.config.granularity == "layer" else 1)
        learned = torch.full(shape, self.config.init, device=context.device)
        optimiser = torch.optim.Adam([learned], lr=self.config.lr)
        with context.progress.track("adapt", total=self.config.steps, unit="steps") as advance:
            for step in range(self.config.steps):
                optimiser.param_groups[0]["lr"] = self.learning_rate(step)
                live.merge(learned.expand(-1, len(live.leaves)))
                entropies = self._entropies(live, context.tasks, step, context.seed)
                gradient = live.gradient()
                task_wise = self.config.granularity == "task"
                learned.grad = gradient.sum(1, keepdim=True) if task_wise else gradient
                optimiser.step()
                if self.config.clamp:
                    learned.clamp_(0, 1)
                total = sum(entropies.values())
                _check(total, learned, step)
                context.log(step, {"entropy": total, **entropies})
                advance(1, note=f"entropy {total / len(entropies):.3f}")
        return self._named(learned, live, list(pool.experts))

    def _entropies(
        self, live: LiveMerge, tasks: TaskPool[Any], step: int, seed: int
    ) -> dict[str, float]:
        """Back-propagate each task's mean entropy in turn: activations of one task at a time."""
        found = {}
        device = next(live.model.parameters()).device
        for task in tasks:
            size, split = self.config.batch_size, Split.UNLABELED
            batch = task.batch(step, size=size, split=split, seed=seed).to(device)
            objective = entropy(task.logits(live.model, batch))
            objective.backward()  # type: ignore[no-untyped-call]
            found[f"entropy/{task.name}"] = objective.item()
        return found

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step (0-based)."""
        if self.config.schedule == "constant":
            return self.config.lr
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * step / self.config.steps))

    def _named(self, learned: Tensor, live: LiveMerge, experts: list[str]) -> Coefficients:
        rows = dict(zip(experts, learned.tolist(), strict=True))
        if self.config.granularity == "task":
            return Coefficients({expert: row[0] for expert, row in rows.items()}, {})
        tensors = {
            expert: {
                name: value
                for leaf, value in zip(live.leaves, row, strict=True)
                for name in leaf.names
            }
            for expert, row in rows.items()
        }
        return Coefficients(dict.fromkeys(experts, self.config.init), tensors)


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy, in nats, of the predictions: logits of shape (examples, classes) -> scalar."""
    log_probabilities = logits.log_softmax(dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1).mean()


def _check(total: float, learned: Tensor, step: int) -> None:
    if not (math.isfinite(total) and bool(learned.isfinite().all())):
        raise FusionError(
            f"adamerging diverged at step {step}: the entropy is {total}",
            hint="Use a smaller algorithm.lr.",
        )
