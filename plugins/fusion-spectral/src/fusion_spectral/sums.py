"""How close the sums of some task vectors are to the experts, on unlabeled examples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from fusion_adapting import Batches, ask_teachers, build_live
from fusion_core import Split, evaluation_mode
from fusion_core.errors import FusionError, RecipeError
from fusion_core.weights import Linear, Scan, is_matrix

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from fusion_core import AdaptiveTask, ModelPool, Piece, RunContext
    from fusion_core.weights import WeightSource

#: Examples that pass through a model together.
_BATCH_SIZE = 32
#: The name of a sum among the operands of a scan.
_TOTAL = "total"


class Judges:
    """The experts of some classification tasks, and unlabeled examples of these tasks."""

    def __init__(
        self,
        pool: ModelPool[Any],
        tasks: Sequence[AdaptiveTask],
        samples: int,
        context: RunContext,
    ) -> None:
        """Ask the experts for the first examples of their tasks, this many at most."""
        self.pool, self.context, self.tasks = pool, context, tasks
        size = min(samples, _BATCH_SIZE)
        self.batches = Batches(size, context.seed, examples=samples)
        self.steps = math.ceil(samples / size)
        self.predictions = ask_teachers(
            pool,
            tasks,
            self.batches,
            self.steps,
            device=context.device,
            progress=context.progress,
        )

    @property
    def can_judge(self) -> bool:
        """Whether all predictions are scores of classes, which can be standardised."""
        return all(asked.are_scores for asked in self.predictions.values())

    @property
    def count(self) -> int:
        """The number of predictions over all tasks."""
        return sum(len(asked.examples) for asked in self.predictions.values())

    def judge(self, total: WeightSource, scales: Sequence[float]) -> Iterator[tuple[float, float]]:
        """Yield each scale, and how far base + scale * (total - base) is from the experts.

        The distance is the mean over tasks of the disagreement with the task's expert, in nats.
        """
        base = self.pool.base
        if base is None:
            raise RecipeError("a sum of task vectors needs a base, and the model pool has none")
        live, other = (build_live(self.pool, w, self.context.device) for w in (total, base))
        with torch.no_grad(), evaluation_mode(live):
            pairs = zip(_floats_of(live), _floats_of(other), strict=True)
            lines = [(values, origin, values - origin) for values, origin in pairs]
            for scale in scales:
                for values, origin, vector in lines:
                    values.copy_(torch.add(origin, vector, alpha=scale))
                yield scale, self._distance(live)

    def _distance(self, model: nn.Module) -> float:
        distances = [
            self._disagreement(model, task, step)
            for task in self.tasks
            for step in range(self.steps)
        ]
        return math.fsum(distances) / len(distances)

    def _disagreement(self, model: nn.Module, task: AdaptiveTask, step: int) -> float:
        batch = self.batches.of(task, step).to(self.context.device)
        logits = task.logits(model, batch).float()
        return float(self.predictions[task.name].standardised_disagreement(step, logits))


def find_full_strength(pool: ModelPool[Any], total: WeightSource, context: RunContext) -> float:
    """Return the factor at which a sum contains the experts' task vectors at full strength.

    The projections of factor * (total - base) on the task vectors then have a mean of 1, weighted
    by the task vectors' squared norms over all matrices. It is 1 for a sum that points away from
    them.
    """
    raw = context.merge_matrices(pool, Linear((1.0,) * len(pool.experts)), extras={_TOTAL: total})
    matrices = [
        info
        for info in raw.infos.values()
        if info.dtype.is_floating_point and is_matrix(info.shape)
    ]
    scan = Scan(raw.operands, matrices, context.executor, raw.cut)
    inner, square = scan(_multiply, torch.add, torch.zeros(2, dtype=torch.float64)).tolist()
    return square / inner if inner > 0 else 1.0


def _multiply(piece: Piece) -> Tensor:
    """Sum <total - base, tau_k> and |tau_k|^2 over a block and its experts, of shape (2,)."""
    rows = piece.task_vectors
    vector = piece.extra(_TOTAL) - piece.base  # noqa: S610 - not Django's
    products = (rows * vector, rows.square())
    return torch.stack([product.sum(dtype=torch.float64) for product in products]).cpu()


def judged_tasks(pool: ModelPool[Any], context: RunContext) -> list[AdaptiveTask]:
    """Return the experts' tasks that have unlabeled examples; raise `RecipeError` if none has."""
    tasks = context.tasks
    if tasks is None:
        raise FusionError("`disentangle` needs tasks with unlabeled examples")
    names = dict.fromkeys(pool.task_of(expert) for expert in pool.experts)
    adaptive = [tasks.adaptive(name) for name in names if name in tasks.names]
    judged = [task.with_all_predictions() for task in adaptive if task.count(Split.UNLABELED) != 0]
    if not judged:
        raise RecipeError(
            "no expert has a task with unlabeled examples to choose by",
            hint="Add unlabeled examples, or set directions of `disentangle`.",
        )
    return judged


def have_answers(tasks: Sequence[AdaptiveTask]) -> bool:
    """Tell from the first examples of tasks whether any has several predictions per example."""
    return any(_predictions_of(task) > 1 for task in tasks)


def _predictions_of(task: AdaptiveTask) -> int:
    """Return the number of predictions of a task's first unlabeled example."""
    (count,) = task.batch(0, size=1, split=Split.UNLABELED, seed=0).count_predictions()
    return count


def _floats_of(model: nn.Module) -> list[Tensor]:
    """Return a live model's floating-point tensors, which a merge changes."""
    values = [*model.parameters(), *model.buffers()]
    return [tensor for tensor in values if tensor.is_floating_point()]
