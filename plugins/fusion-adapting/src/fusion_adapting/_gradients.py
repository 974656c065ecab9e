"""Squared gradients of the log-likelihood per example: the diagonal of the Fisher information.

The square of a batch's gradient is not the sum of its examples' squares. So each example and label
needs a gradient of its own, as large as the model. Several are computed at once within a budget.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import one_hot

from fusion_adapting._experts import measure_experts
from fusion_adapting._finite import refuse_nonfinite
from fusion_adapting._live import group_tied_names, separate_tensors
from fusion_adapting._squares import LogProbabilities, SquareSums
from fusion_core import note
from fusion_core.weights.merging.counters import counter_uniform

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from fusion_core import AdaptiveTask, Batch, ModelPool, TaskPool


def squared_gradients(  # noqa: PLR0913 - which examples, and where to pass them
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

    The examples are those of `moments`, and the result is that of `compute_squared_gradients`. One
    expert is live at a time, and released before its gradients are yielded. The iterator keeps
    none. Raises `RecipeError` for an expert without a task, before loading any model.
    """

    def measure(*model_and_examples: Any) -> dict[str, Tensor]:  # noqa: ANN401 - as in `Measure`
        squares = compute_squared_gradients(*model_and_examples, exact_up_to=exact_up_to, seed=seed)
        return separate_tensors(pool, squares)

    where: Any = {"batch_size": batch_size, "seed": seed, "device": device}
    return measure_experts(measure, pool, tasks, samples=samples, **where)


def compute_squared_gradients(  # noqa: PLR0913 - a model and its parameters, the examples, and how exactly
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    task: AdaptiveTask,
    batches: Iterable[Batch],
    *,
    exact_up_to: int = 16,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return E[(d log p(y|x) / d parameter)^2] by tensor name, of each parameter's shape.

    The mean over examples x and the expectation over labels y that the model itself predicts
    (Fisher merging, arXiv:2111.09832), so no labels are needed. For tasks of at most `exact_up_to`
    classes the expectation is exact and costs one backward pass per class. For more classes, one
    label per example is drawn from the predictions: the same expectation, with a variance, for one
    backward pass per example. The draw depends on `seed`, the task's name and the example's number,
    but not on the batches. Parameters that take no part get zeros. Tied names share a tensor. The
    model, in evaluation mode, does not change. Raises `FusionError` for predictions or squared
    gradients that are not finite.

    Several gradients are computed at once by `torch.func.vmap` if they take at most 64 MiB together
    (2 GiB on an accelerator). In models that vmap cannot handle, with a recurrence or branches that
    depend on values, they are computed one by one.
    """
    names = group_tied_names(parameters)
    squares = SquareSums(LogProbabilities(model, task), list(names))
    label_key = f"{seed}\0labels\0{task.name}"
    device, count = next(model.parameters()).device, 0
    with _requires_grad(squares.parameters), torch.enable_grad():
        for batch in batches:
            on_device = batch.to(device)
            logs = squares.log_probabilities(on_device)
            refuse_nonfinite(logs, "the predictions", model, task)
            weights = _label_weights(logs, label_key, first=count, exact_up_to=exact_up_to)
            squares.add(on_device, weights)
            count += len(batch)
            note(f"{task.name}: {count:,} examples")
    means: dict[str, Tensor] = {}
    for tied_names, total in zip(names.values(), squares.sums, strict=True):
        label = f"the squared gradients of {tied_names[0]!r}"
        refuse_nonfinite(total, label, model, task)
        means |= dict.fromkeys(tied_names, total.div_(count))
    return means


def _label_weights(logs: Tensor, key: str, *, first: int, exact_up_to: int) -> Tensor:
    """Return the factors of the labels, of shape (examples, labels, classes).

    A factor is the square root of the label's probability. Up to `exact_up_to` classes, every class
    is a label. Above, one label per example is drawn. `logs` are log-probabilities of shape
    (examples, classes), `first` is the number of the first example, and the random numbers derive
    from `key`.
    """
    if logs.shape[1] <= exact_up_to:
        return torch.diag_embed((logs / 2).exp())
    cumulative = logs.exp().cpu().double().cumsum(dim=1)
    uniform = counter_uniform(key, first, first + len(logs)).double()
    drawn = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    return one_hot(drawn, logs.shape[1]).to(logs)


@contextmanager
def _requires_grad(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
