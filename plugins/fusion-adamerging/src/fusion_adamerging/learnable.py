"""Learned tensors that determine the coefficients of a live merge."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch

from fusion_adapting import Learnable, SearchStoppedError
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from fusion_adamerging.config import GranularityConfig
    from fusion_adapting import LiveMerge

#: If matrices have several coefficients, those of whole tensors learn at this multiple of the rate.
#: Each moves as much as a matrix's thousands together, so it needs a lower rate than they do.
WHOLE = 0.1
#: Coefficients of this size no longer merge: the best of task arithmetic are near 0.3.
LARGEST = 10.0


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

    def write_weights(self) -> None:
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


def check_size(step: int, coefficients: Tensor) -> None:
    """Raise `SearchStoppedError` if a coefficient is NaN or larger than `LARGEST`.

    In the first step, it is a `RecipeError` about the start.
    """
    largest = float(coefficients.abs().max())
    if largest <= LARGEST:  # false for NaN
        return
    if not step:
        raise RecipeError(
            f"algorithm.init: expected a size of at most {LARGEST:g}, got {largest:g}",
            hint="The best coefficients of task arithmetic are near 0.3.",
        )
    raise SearchStoppedError(
        f"the search diverged at step {step}: a coefficient has become {largest:g}",
        hint="Use a smaller algorithm.lr.",
    )
