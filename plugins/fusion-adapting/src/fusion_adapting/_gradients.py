"""Squared gradients of the log-likelihood, an example at a time: the diagonal of Fisher's matrix.

The square of a batch's gradient is not the sum of its examples' squares, so each example and label
has a gradient of its own, as large as the model. As many as fit into a budget are found at once.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import one_hot

from fusion_adapting._experts import over_experts
from fusion_adapting._live import names_of
from fusion_adapting._squares import LogProbabilities, Squares
from fusion_core import note
from fusion_core.weights.merging.counters import counter_uniform

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from fusion_core import AdaptiveTask, Batch, ModelPool, TaskPool


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
    the cost of one backward pass per class, for tasks of at most `exact_up_to` classes. For more,
    one label per example is drawn from the model's predictions, which has the same expectation and
    a variance, at the cost of one backward pass per example. An example's draw depends on `seed`,
    the task's name and the example's number, not on batches. Parameters that take no part have
    zeros. Tied names have the same tensor. The model, in evaluation mode, stays as it was.

    Gradients of several examples and labels are found at once where they take 64 MiB together at
    most, 2 GiB on a device of its own, by `torch.func.vmap`; one by one in models that it cannot
    follow (a recurrence, branches that depend on values).
    """
    names = names_of(parameters)
    squares = Squares(LogProbabilities(model, task), list(names))
    labels = _Labels(exact_up_to, f"{seed}\0labels\0{task.name}")
    device, seen = next(model.parameters()).device, 0
    with _needing_gradients(squares.parameters), torch.enable_grad():
        for batch in batches:
            here = batch.to(device)
            squares.add(here, labels.weights(squares.logs(here), first=seen))
            seen += len(batch)
            note(f"{task.name}: {seen:,} examples")
    found = zip(names.values(), squares.sums, strict=True)
    return {name: mean for tied, total in found for mean in [total.div_(seen)] for name in tied}


@dataclass(frozen=True)
class _Labels:
    """Which labels are looked at: all of few classes, of many one per example by chance."""

    exact_up_to: int
    #: what the random numbers derive from
    key: str

    def weights(self, logs: Tensor, *, first: int) -> Tensor:
        """Return the labels' factors, roots of their shares, of shape (examples, labels, classes).

        `logs` are log-probabilities of shape (examples, classes); `first` is the number of the
        first example.
        """
        if logs.shape[1] <= self.exact_up_to:
            return torch.diag_embed((logs / 2).exp())
        below = logs.exp().cpu().double().cumsum(dim=1)
        uniform = counter_uniform(self.key, first, first + len(logs)).double()
        drawn = torch.searchsorted(below, uniform[:, None] * below[:, -1:], right=True)
        return one_hot(drawn, logs.shape[1]).to(logs)


@contextmanager
def _needing_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for each in parameters:
            each.requires_grad_(True)
        yield
    finally:
        for each, needed in zip(parameters, before, strict=True):
            each.requires_grad_(needed)
