"""Sums of squared gradients of single examples and labels, several at a time where that works."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from fusion_adapting._predictions import log_probabilities, widened
from fusion_core import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core import AdaptiveTask

    Inputs = Tensor | Mapping[str, Tensor]

#: bytes of gradients at once: on a CPU what is not far beyond its caches
_BYTES_ON_CPU, _BYTES = 2**26, 2**31


class LogProbabilities(nn.Module):
    """What a live model predicts of a task's inputs: shape (examples, classes), at least fp32."""

    def __init__(self, model: nn.Module, task: AdaptiveTask) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, inputs: Inputs) -> Tensor:
        """Return log-probabilities that are finite."""
        return log_probabilities(widened(self.task.logits(self.model, Batch(inputs))))


class Squares:
    """Sums of squared gradients, by parameter."""

    def __init__(self, predict: LogProbabilities, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.sums = [widened(torch.zeros_like(each.detach())) for each in parameters]
        self._predict = predict
        names = {parameter: name for name, parameter in predict.named_parameters()}
        self._values = {names[each]: each.detach() for each in parameters}
        self._at_once = _gradients_at_once(parameters)

    @torch.no_grad()
    def logs(self, batch: Batch) -> Tensor:
        """Return log-probabilities, of shape (examples, classes)."""
        logs: Tensor = self._predict(batch.inputs)
        return logs

    def add(self, batch: Batch, weights: Tensor) -> None:
        """Add the squares of the gradients of sums of weighted log-probabilities.

        `weights` has shape (examples, sums, classes).
        """
        done = self._add_together(batch, weights) if self._at_once > 1 else 0
        for row in range(done, len(batch)):
            self._add_one_by_one(batch.part(row, row + 1), weights[row])

    def _add_together(self, batch: Batch, weights: Tensor) -> int:
        """Add those of examples as long as vmap can follow; return of how many."""
        step = max(1, self._at_once // weights.shape[1])
        for start in range(0, len(batch), step):
            part = batch.part(start, start + step)
            try:
                with _no_slow_ways():
                    found = self._of_part(part, weights[start : start + step])
            except (RuntimeError, UserWarning):  # a branch on values, say, or too little memory
                self._at_once = 1
                return start
            for total, each in zip(self.sums, found, strict=True):
                total.add_(each)
        return len(batch)

    def _of_part(self, batch: Batch, weights: Tensor) -> list[Tensor]:
        """Return the sums of squares of examples; of one alone, in parts if it has many."""
        sums: list[Tensor] = []
        for some in torch.split(weights, self._at_once, dim=1):
            found = [each.sum(0) for each in vmap(self._of_one)(batch.inputs, some)]
            sums = [a.add_(b) for a, b in zip(sums, found, strict=True)] if sums else found
        return sums

    def _of_one(self, inputs: Inputs, weights: Tensor) -> list[Tensor]:
        """Return the sums of squares of one example; `weights` has shape (sums, classes)."""
        one = (_alone(inputs),)

        def logs(values: dict[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(self._predict, values, one)[0]
            return found

        _, back, *_ = vjp(logs, self._values)
        (found,) = vmap(back)(weights)
        return [widened(each).square().sum(0) for each in found.values()]

    def _add_one_by_one(self, example: Batch, weights: Tensor) -> None:
        logs = self._predict(example.inputs)[0]
        if not logs.requires_grad:  # none of the parameters takes part in it
            return
        for weight in weights[weights.any(-1)]:
            found = torch.autograd.grad(
                logs, self.parameters, weight, retain_graph=True, allow_unused=True
            )
            for total, gradient in zip(self.sums, found, strict=True):
                if gradient is not None:
                    wide = gradient.to_dense().to(total.dtype)  # an embedding may make it sparse
                    total.addcmul_(wide, wide)


@contextmanager
def _no_slow_ways() -> Iterator[None]:
    """Make an error of what vmap says where it takes one example after the other itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "There is a performance drop", UserWarning)
        yield


def _alone(inputs: Inputs) -> Inputs:
    """Return one example's inputs as a batch."""
    if isinstance(inputs, Tensor):
        return inputs[None]
    return {name: each[None] for name, each in inputs.items()}


def _gradients_at_once(parameters: Sequence[nn.Parameter]) -> int:
    """Return how many gradients of a model are held at once."""
    size = sum(parameter.nbytes for parameter in parameters)
    on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    return max(1, (_BYTES_ON_CPU if on_cpu else _BYTES) // max(size, 1))
