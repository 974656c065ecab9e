"""Tensors that a search learns, and how they determine the weights of a live model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch

from fusion_adamerging.monitor import check_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from fusion_adamerging.config import GranularityConfig
    from fusion_adapting import LiveMerge

#: If matrices have several coefficients, those of whole tensors learn at this multiple of the rate.
#: Each moves as much as a matrix's thousands together, so it needs a lower rate than they do.
WHOLE = 0.1


class Learnable(ABC):
    """Learned tensors by name, in the order in which they are saved.

    In every step the search calls `check` and `place`, back-propagates, calls `collect`, lets Adam
    take its step, and calls `settle`.
    """

    tensors: Mapping[str, Tensor]
    #: multiples of the search's learning rate, for the tensors that do not learn at that rate
    rate_factors: Mapping[str, float] = {}
    #: by task: parameters that replace the live model's own, see `Passes.task_parameters`
    task_parameters: Mapping[str, Mapping[str, nn.Parameter]] = {}

    @abstractmethod
    def place(self) -> None:
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


class LearnableMerge(Learnable):
    """Tensors that determine the coefficients of a live merge."""

    def __init__(
        self,
        live: LiveMerge,
        experts: Sequence[str],
        device: torch.device,
        config: Any,  # noqa: ANN401 - of the method
    ) -> None:
        del device, config
        self.experts = list(experts)
        self._live = live

    @abstractmethod
    def coefficients(self, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the coefficients that `tensors` (by default the current ones) stand for.

        Of shape (experts, columns).
        """

    def place(self) -> None:
        """Merge with the current coefficients."""
        self._live.merge(self.coefficients())


class LearnableCoefficients(LearnableMerge):
    """Coefficients of a live merge: (experts, columns), or (experts, 1) for one per model.

    If some tensors have several coefficients, the tensors with one are learned apart, as `whole`.
    """

    rate_factors: Mapping[str, float] = {"whole": WHOLE}

    def __init__(
        self,
        live: LiveMerge,
        experts: Sequence[str],
        device: torch.device,
        config: GranularityConfig,
    ) -> None:
        super().__init__(live, experts, device, config)
        self._shared, self._clamp = config.granularity == "model", config.clamp
        self._columns = {name: columns.to(device) for name, columns in _split_columns(live).items()}
        counts = {name: len(columns) for name, columns in self._columns.items()}
        self._coefficients = {
            name: torch.full((len(experts), count), config.init, dtype=live.dtype, device=device)
            for name, count in ({"coefficients": 1} if self._shared else counts).items()
        }
        self.tensors = self._coefficients

    def coefficients(self, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the coefficients of all columns."""
        tensors = tensors or self.tensors
        if self._shared:
            return tensors["coefficients"].expand(-1, self._live.columns)
        spread = tensors["coefficients"].new_empty(len(self.experts), self._live.columns)
        for name, columns in self._columns.items():
            spread[:, columns] = tensors[name]
        return spread

    def collect(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Project the gradient onto the task vectors."""
        gradient = summed(self._live.gradient())
        for name, tensor in self._coefficients.items():
            columns = self._columns[name]
            tensor.grad = gradient.sum(1, keepdim=True) if self._shared else gradient[:, columns]

    def settle(self) -> None:
        """Clamp the coefficients to [0, 1] if asked to."""
        if self._clamp:
            for coefficient in self._coefficients.values():
                coefficient.clamp_(0, 1)

    def check(self, step: int) -> None:
        """Raise `SearchStoppedError` for coefficients that are not finite or too large.

        If a tensor has several, their root mean square is checked. A single one may have any size,
        for example that of a row that an expert hardly changed.
        """
        sizes = [
            values.reshape(len(values), -1).square().mean(dim=1).sqrt()
            for _, values in self._live.by_leaf(self.coefficients())
        ]
        check_size(step, torch.stack(sizes, dim=1))

    def shown(self) -> Mapping[str, float]:
        """Return each expert's mean coefficient."""
        means = self.coefficients().mean(dim=1).tolist()
        return {f"coefficient/{k}": mean for k, mean in zip(self.experts, means, strict=True)}


def _split_columns(live: LiveMerge) -> dict[str, Tensor]:
    """Return the columns of tensors with several coefficients, and those of tensors with one."""
    counts = torch.tensor([leaf.count for leaf in live.leaves], dtype=torch.long)
    several = (counts > 1).repeat_interleave(counts)
    if not several.any():
        return {"coefficients": torch.arange(live.columns)}
    return {"coefficients": several.nonzero()[:, 0], "whole": (~several).nonzero()[:, 0]}
