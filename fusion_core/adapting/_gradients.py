"""Squared gradients of the log-likelihood, an example at a time: the diagonal of Fisher's matrix.

Examples are passed through one by one: the square of a batch's gradient is not the sum of its
examples' squares, and gradients of several examples at once would take a model's memory each.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.adapting._experts import over_experts
from fusion_core.adapting._live import names_of
from fusion_core.adapting._predictions import log_probabilities, widened
from fusion_core.progress import note

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from fusion_core.contracts.batch import Batch
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import AdaptiveTask, TaskPool


def squared_gradients(  # noqa: PLR0913 - which examples, and where they are passed through
    pool: ModelPool[Any],
    tasks: TaskPool[Any],
    *,
    samples: int = 256,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str = "cpu",
    exact_up_to: int = 16,
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every expert's name and its squared gradients on examples of its own task.

    The same examples as those of `moments`. One expert is live at a time, and gone when its figures
    are yielded; nothing of them is kept here. See `squared_gradients_of`. Raises `RecipeError` for
    an expert whose task is not there, before anything is loaded.
    """
    look = partial(squared_gradients_of, exact_up_to=exact_up_to, seed=seed)
    places: Any = {"batch_size": batch_size, "seed": seed, "device": device}
    return over_experts(look, pool, tasks, samples=samples, **places)


def squared_gradients_of(  # noqa: PLR0913 - a model, what of it, on what, and how exactly
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    task: AdaptiveTask,
    batches: Iterable[Batch],
    *,
    exact_up_to: int = 16,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return by tensor name E[(d log p(y|x) / d parameter)^2], of the parameter's shape.

    The mean over examples x and the expectation over labels y that the model itself predicts (as
    Fisher merging needs it, arXiv:2111.09832): no labels are needed. The expectation is exact, at
    the cost of a backward pass a class, for tasks of at most `exact_up_to` classes; of more, one
    label an example is drawn from the model's predictions, which has the same expectation and a
    variance. What is drawn depends on `seed` and the task's name alone. Parameters that take no
    part have zeros. Tied names have the same tensor. The model, in evaluation mode, stays as it
    was.
    """
    names = names_of(parameters)
    squares = _Squares(list(names), exact_up_to, _generator(seed, task.name))
    device = next(model.parameters()).device
    with _needing_gradients(squares.parameters), torch.enable_grad():
        for batch in batches:
            for row in range(len(batch)):
                logits = task.logits(model, batch.part(row, row + 1).to(device))
                squares.add(log_probabilities(widened(logits))[0])
            note(f"{task.name}: {squares.examples:,} examples")
    means = zip(names.values(), squares.means(), strict=True)
    return {name: mean for tied, mean in means for name in tied}


class _Squares:
    """Sums of squared gradients of log-probabilities."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], exact_up_to: int, draws: torch.Generator
    ) -> None:
        self.parameters = parameters
        self.sums = [widened(torch.zeros_like(each.detach())) for each in parameters]
        self.examples = 0
        self._exact_up_to = exact_up_to
        self._draws = draws

    def add(self, logs: Tensor) -> None:
        """Add those of one example; `logs` has shape (classes,)."""
        self.examples += 1
        if not logs.requires_grad:  # none of the parameters takes part in it
            return
        for label, share in self._labels(logs.detach().exp()):
            found = torch.autograd.grad(
                logs[label], self.parameters, retain_graph=True, allow_unused=True
            )
            for total, gradient in zip(self.sums, found, strict=True):
                if gradient is not None:
                    wide = gradient.to_dense().to(total.dtype)  # an embedding may make it sparse
                    total.addcmul_(wide, wide, value=share)

    def means(self) -> list[Tensor]:
        return [each.div_(self.examples) for each in self.sums]

    def _labels(self, probabilities: Tensor) -> list[tuple[int, float]]:
        """Return the labels to look at, each with its share in the expectation."""
        if len(probabilities) <= self._exact_up_to:
            return [(label, share) for label, share in enumerate(probabilities.tolist()) if share]
        drawn = torch.multinomial(probabilities.cpu().double(), 1, generator=self._draws)
        return [(int(drawn), 1.0)]


@contextmanager
def _needing_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [each.requires_grad for each in parameters]
    try:
        for each in parameters:
            each.requires_grad_(True)
        yield
    finally:
        for each, needed in zip(parameters, before, strict=True):
            each.requires_grad_(needed)


def _generator(seed: int, task: str) -> torch.Generator:
    """Return random numbers of a seed and task, the same in every process."""
    digest = hashlib.blake2b(f"{seed}\0{task}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))
