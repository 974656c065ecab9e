"""What AdaRank learns: which singular components are on, and a coefficient an expert and tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_adamerging.learned import LearnedMerge
from fusion_adamerging.watch import check_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from fusion_adamerging.config import AdaRankConfig
    from fusion_adapting import LiveMerge

#: The first logit of what is on, minus that of what is off, and what logits are divided by.
FIRST, TEMPERATURE = 0.1, 10.0


class LearnedComponents(LearnedMerge):
    """Logits of shape (experts, components of all leaves), and coefficients (experts, leaves).

    A component is on where sigmoid(logit / 10) is above a half, and then has the coefficient of its
    leaf; on the way back the step counts as that sigmoid (the straight-through estimator). The
    temperature 10 and the first logits of 0.1 and -0.1 are those of the authors' code.
    """

    def __init__(
        self, live: LiveMerge, experts: Sequence[str], device: torch.device, config: AdaRankConfig
    ) -> None:
        super().__init__(live, experts, device, config)
        self._counts = [leaf.count for leaf in live.leaves]
        leaf, number, ranks = _columns(torch.tensor(self._counts, dtype=torch.long))
        own, on = number < ranks, number < (ranks.double() * config.rank).long()
        first = (2 * on[own].to(live.dtype) - 1) * FIRST
        scales = torch.full((len(experts), len(live.leaves)), config.init, dtype=live.dtype)
        self._leaf, self._components = leaf.to(device), own.to(device)
        self.logits, self.scales = first.repeat(len(experts), 1).to(device), scales.to(device)
        self.tensors = {"logits": self.logits, "coefficients": self.scales}

    def every(self, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return each column's coefficient: that of its leaf or, of components that are off, 0."""
        given = tensors or self.tensors
        return self._on(given["logits"]) * given["coefficients"][:, self._leaf]

    def collect(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Sum the columns' gradients over what is on, and pass those of components straight on."""
        gradient = summed(self._live.gradient())
        parts = (gradient * self._on(self.logits)).split_with_sizes(self._counts, dim=1)
        self.scales.grad = torch.stack([part.sum(dim=1) for part in parts], dim=1)
        chances = (self.logits / TEMPERATURE).sigmoid()
        slopes = chances * (1 - chances) / TEMPERATURE
        own = (gradient * self.scales[:, self._leaf])[:, self._components]
        self.logits.grad = own * slopes

    def check(self, step: int) -> None:
        """Raise `SearchStoppedError` for coefficients out of all proportion."""
        check_size(step, self.scales)

    def shown(self) -> Mapping[str, float]:
        """Return each expert's mean coefficient, and the share of its components that are on."""
        means = self.scales.mean(dim=1).tolist()
        shares = ((self.logits > 0).sum(dim=1) / max(self.logits.shape[1], 1)).tolist()
        return {
            **{f"coefficient/{k}": mean for k, mean in zip(self.experts, means, strict=True)},
            **{f"on/{k}": share for k, share in zip(self.experts, shares, strict=True)},
        }

    def _on(self, logits: Tensor) -> Tensor:
        """Return 1 or 0 for every column; what is not a component is always on."""
        on = torch.ones(len(logits), self._live.columns, dtype=logits.dtype, device=logits.device)
        on[:, self._components] = (logits > 0).to(logits.dtype)
        return on


def _columns(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return every column's leaf, its number in that, and how many of the leaf's are components.

    The column after those is what no component holds, or the whole task vector.
    """
    leaf = torch.arange(len(counts)).repeat_interleave(counts)
    number = torch.arange(len(leaf)) - (counts.cumsum(0) - counts)[leaf]
    return leaf, number, (counts - 1)[leaf]
