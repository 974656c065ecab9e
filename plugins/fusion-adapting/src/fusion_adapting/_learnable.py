"""Tensors that a search learns, and how they determine the weights of a live model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn


class Learnable(ABC):
    """Learned tensors by name, in the order in which they are saved.

    In every step the search calls `check` and `write_weights`, back-propagates, calls `collect`,
    lets Adam take its step, and calls `settle`.
    """

    tensors: Mapping[str, Tensor]
    #: multiples of the search's learning rate, for the tensors that do not learn at that rate
    rate_factors: Mapping[str, float] = {}
    #: by task: parameters that replace the live model's own, see `Passes.task_parameters`
    task_parameters: Mapping[str, Mapping[str, nn.Parameter]] = {}

    @abstractmethod
    def write_weights(self) -> None:
        """Write the weights that the tensors stand for into the live model."""

    @abstractmethod
    def collect(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Set every tensor's gradient after the backward pass; `summed` adds up all ranks."""

    def settle(self) -> None:  # noqa: B027 - most have no bounds
        """Bring the tensors back within their bounds after a step."""

    def check(self, step: int) -> None:  # noqa: B027 - most cannot leave their bounds
        """Raise `SearchStoppedError` if the tensors show that the search has diverged."""

    @abstractmethod
    def shown(self) -> Mapping[str, float]:
        """Return the metrics to log in every step."""
