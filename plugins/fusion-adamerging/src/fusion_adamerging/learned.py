"""What a search learns: numbers that Adam changes, and what they make of a live model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch

from fusion_adamerging.watch import check_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from fusion_adamerging.config import GrainedConfig
    from fusion_core.adapting import LiveMerge


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

    def __init__(self, live: LiveMerge, experts: Sequence[str]) -> None:
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
    """Coefficients of a live merge: shape (experts, columns of it) or (experts, 1)."""

    def __init__(
        self,
        live: LiveMerge,
        experts: Sequence[str],
        device: torch.device,
        config: GrainedConfig,
    ) -> None:
        super().__init__(live, experts)
        self._shared = config.granularity == "model"
        columns = 1 if self._shared else live.columns
        start = torch.full((len(experts), columns), config.init, dtype=live.dtype)
        self.coefficients = start.to(device)
        self.tensors = {"coefficients": self.coefficients}
        self._clamp = config.clamp
        self._pace = None if self._shared else _pace([leaf.count for leaf in live.leaves])

    def every(self, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Spread them over all leaves."""
        return (tensors or self.tensors)["coefficients"].expand(-1, self._live.columns)

    def collect(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Project the gradient onto the task vectors."""
        gradient = summed(self._live.gradient())
        self.coefficients.grad = gradient.sum(1, keepdim=True) if self._shared else gradient

    def place(self) -> None:
        """Merge, and remember from where a step is taken."""
        super().place()
        self._before = self.coefficients.clone()

    def settle(self) -> None:
        """Go only a part of the way with whole tensors', and clamp to [0, 1] if that is wanted."""
        if self._pace is not None:
            torch.lerp(
                self._before, self.coefficients, self._pace.to(self._before), out=self.coefficients
            )
        if self._clamp:
            self.coefficients.clamp_(0, 1)

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
        means = self.coefficients.mean(dim=1).tolist()
        return {f"coefficient/{k}": mean for k, mean in zip(self.experts, means, strict=True)}


def _pace(counts: Sequence[int]) -> Tensor | None:
    """Return by which part of a step each column goes; None where all go the whole way."""
    sizes = torch.tensor(counts)
    if not len(sizes) or int(sizes.max()) == 1:
        return None
    return torch.where(sizes > 1, 1.0, WHOLE).repeat_interleave(sizes)
