"""Sums of the squared gradients of single examples and labels, several at once if possible."""

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

#: Bytes of gradients to hold at once. On a CPU more would leave the caches too far behind.
_BYTES_ON_CPU, _BYTES = 2**26, 2**31


class LogProbabilities(nn.Module):
    """A task's log-probabilities from its inputs: shape (examples, classes), at least fp32."""

    def __init__(self, model: nn.Module, task: AdaptiveTask) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, inputs: Inputs) -> Tensor:
        """Return finite log-probabilities."""
        return log_probabilities(widened(self.task.logits(self.model, Batch(inputs))))


class SquareSums:
    """Sums of squared gradients by parameter."""

    def __init__(self, predict: LogProbabilities, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.sums = [widened(torch.zeros_like(parameter.detach())) for parameter in parameters]
        self._predict = predict
        names = {parameter: name for name, parameter in predict.named_parameters()}
        self._values = {names[parameter]: parameter.detach() for parameter in parameters}
        size = sum(parameter.nbytes for parameter in parameters)
        on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
        #: how many gradients to hold at once
        self._at_once = max(1, (_BYTES_ON_CPU if on_cpu else _BYTES) // max(size, 1))

    @torch.no_grad()
    def log_probabilities(self, batch: Batch) -> Tensor:
        """Return log-probabilities of shape (examples, classes)."""
        logs: Tensor = self._predict(batch.inputs)
        return logs

    def add(self, batch: Batch, weights: Tensor) -> None:
        """Add the squared gradients of weighted sums of log-probabilities.

        `weights` has shape (examples, sums, classes).
        """
        done = self._add_together(batch, weights) if self._at_once > 1 else 0
        for row in range(done, len(batch)):
            self._add_one_by_one(batch.part(row, row + 1), weights[row])

    def _add_together(self, batch: Batch, weights: Tensor) -> int:
        """Add examples as long as vmap can handle the model; return their number."""
        step = max(1, self._at_once // weights.shape[1])
        for start in range(0, len(batch), step):
            part = batch.part(start, start + step)
            try:
                with _refuse_slow_fallbacks():
                    squares = self._squares_of_part(part, weights[start : start + step])
            except (RuntimeError, UserWarning):  # a branch on values, or too little memory
                self._at_once = 1
                return start
            for total, square in zip(self.sums, squares, strict=True):
                total.add_(square)
        return len(batch)

    def _squares_of_part(self, batch: Batch, weights: Tensor) -> list[Tensor]:
        """Return the sums of squares over examples; split one that has many sums."""
        totals: list[Tensor] = []
        for some in torch.split(weights, self._at_once, dim=1):
            squares = [square.sum(0) for square in vmap(self._squares_of_one)(batch.inputs, some)]
            totals = (
                [a.add_(b) for a, b in zip(totals, squares, strict=True)] if totals else squares
            )
        return totals

    def _squares_of_one(self, inputs: Inputs, weights: Tensor) -> list[Tensor]:
        """Return the sums of squares of one example; `weights` has shape (sums, classes)."""
        batch_of_one = (
            inputs[None]
            if isinstance(inputs, Tensor)
            else {name: values[None] for name, values in inputs.items()}
        )

        def predict(values: dict[str, Tensor]) -> Tensor:
            logs: Tensor = functional_call(self._predict, values, (batch_of_one,))[0]
            return logs

        _, back, *_ = vjp(predict, self._values)
        (gradients,) = vmap(back)(weights)
        return [widened(gradient).square().sum(0) for gradient in gradients.values()]

    def _add_one_by_one(self, example: Batch, weights: Tensor) -> None:
        logs = self._predict(example.inputs)[0]
        if not logs.requires_grad:  # no parameter takes part in it
            return
        for weight in weights[weights.any(-1)]:
            gradients = torch.autograd.grad(
                logs, self.parameters, weight, retain_graph=True, allow_unused=True
            )
            for total, gradient in zip(self.sums, gradients, strict=True):
                if gradient is not None:
                    wide = gradient.to_dense().to(total.dtype)  # an embedding may make it sparse
                    total.addcmul_(wide, wide)


@contextmanager
def _refuse_slow_fallbacks() -> Iterator[None]:
    """Raise vmap's warning that it handles one example after the other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "There is a performance drop", UserWarning)
        yield
