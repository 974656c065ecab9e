"""What a search learns: numbers that Adam changes, and what they make of a live model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch

from fusion_adamerging.watch import check_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from fusion_adamerging.config import GrainedConfig
    from fusion_adapting import LiveMerge


class Learned(ABC):
    """Tensors by name, in the order in which they are saved, and how they and a model meet."""

    tensors: Mapping[str, Tensor]
    #: the learning rates of tensors that have another than the search's, each as a multiple of that
    paces: Mapping[str, float] = {}
    #: what stands in the live model's parameters' places while a task passes: see `Passes.own`
    own: Mapping[str, Mapping[str, nn.Parameter]] = {}

    @abstractmethod
    def place(self) -> None:
        """Write into the live model what the tensors stand for."""

    @abstractmethod
    def collect(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Set every tensor's gradient from what was back-propagated; `summed` adds all ranks'."""

    def settle(self) -> None:  # noqa: B027 - most have no bounds
        """Bring the tensors back within their bounds after a step."""

    def check(self, step: int) -> None:  # noqa: B027 - most cannot leave their bounds
        """Raise `SearchStoppedError` where going on would lead astray."""

    @abstractmethod
    def shown(self) -> Mapping[str, float]:
        """Return what is logged of them in every step."""


class LearnedMerge(Learned):
    """Tensors that make the coefficients of a live merge."""

    def __init__(
        self,
        live: LiveMerge,
        experts: Sequence[str],
        device: torch.device,
        config: Any,  # noqa: ANN401 - the method's own
    ) -> None:
        del device, config
        self.experts = list(experts)
        self._live = live

    @abstractmethod
    def every(self, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the coefficients that tensors (by default its own) make: (experts, columns)."""

    def place(self) -> None:
        """Merge."""
        self._live.merge(self.every())


#: Where others are finer, coefficients of whole tensors learn at this multiple of the rate: each
#: moves as much as a matrix's thousands do, and rates that suit these are too large for it.
WHOLE = 0.1


class LearnedCoefficients(LearnedMerge):
    """Coefficients of a live merge: (experts, columns of it) or, a model having one, (experts, 1).

    Where tensors have several, those that have one learn apart, as `whole`.
    """

    paces: Mapping[str, float] = {"whole": WHOLE}

    def __init__(
        self, live: LiveMerge, experts: Sequence[str], device: torch.device, config: GrainedConfig
    ) -> None:
        super().__init__(live, experts, device, config)
        self._shared, self._clamp = config.granularity == "model", config.clamp
        self._columns = {name: each.to(device) for name, each in _parted(live).items()}
        counts = {name: len(each) for name, each in self._columns.items()}
        self._coefficients = {
            name: torch.full((len(experts), n), config.init, dtype=live.dtype, device=device)
            for name, n in ({"coefficients": 1} if self._shared else counts).items()
        }
        self.tensors = self._coefficients

    def every(self, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Spread them over all leaves."""
        given = tensors or self.tensors
        if self._shared:
            return given["coefficients"].expand(-1, self._live.columns)
        found = given["coefficients"].new_empty(len(self.experts), self._live.columns)
        for name, columns in self._columns.items():
            found[:, columns] = given[name]
        return found

    def collect(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Project the gradient onto the task vectors."""
        gradient = summed(self._live.gradient())
        for name, each in self._coefficients.items():
            columns = self._columns[name]
            each.grad = gradient.sum(1, keepdim=True) if self._shared else gradient[:, columns]

    def settle(self) -> None:
        """Clamp to [0, 1] if that is wanted."""
        if self._clamp:
            for coefficient in self._coefficients.values():
                coefficient.clamp_(0, 1)

    def check(self, step: int) -> None:
        """Raise `SearchStoppedError` for coefficients out of all proportion.

        Of several that a tensor has it is their root mean square that counts: a row in which an
        expert changed next to nothing may have any.
        """
        sizes = [
            own.reshape(len(own), -1).square().mean(dim=1).sqrt()
            for _, own in self._live.by_leaf(self.every())
        ]
        check_size(step, torch.stack(sizes, dim=1))

    def shown(self) -> Mapping[str, float]:
        """Return each expert's mean."""
        means = self.every().mean(dim=1).tolist()
        return {f"coefficient/{k}": mean for k, mean in zip(self.experts, means, strict=True)}


def _parted(live: LiveMerge) -> dict[str, Tensor]:
    """Return the columns of tensors that have several and of those that have one; or all."""
    counts = torch.tensor([leaf.count for leaf in live.leaves], dtype=torch.long)
    several = (counts > 1).repeat_interleave(counts)
    if not several.any():
        return {"coefficients": torch.arange(live.columns)}
    return {"coefficients": several.nonzero()[:, 0], "whole": (~several).nonzero()[:, 0]}
