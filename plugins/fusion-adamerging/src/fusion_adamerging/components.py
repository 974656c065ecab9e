"""The learned tensors of AdaRank: which singular components are on, and their coefficients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_adamerging.learnable import LearnableMerge, check_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from fusion_adamerging.config import AdaRankConfig
    from fusion_adapting import LiveMerge

#: The initial logit of components that are on (negative if off), and the divisor of logits.
FIRST, TEMPERATURE = 0.1, 10.0


class LearnableComponents(LearnableMerge):
    """Logits of shape (experts, components of all leaves), and coefficients (experts, leaves).

    A component is on if sigmoid(logit / 10) exceeds 0.5. It then has the coefficient of its leaf.
    In the backward pass that sigmoid stands in for the step (the straight-through estimator). The
    temperature of 10 and the initial logits of 0.1 and -0.1 are those of the authors' code.
    """

    def __init__(
        self, live: LiveMerge, experts: Sequence[str], device: torch.device, config: AdaRankConfig
    ) -> None:
        super().__init__(live, experts, device, config)
        self._counts = [leaf.count for leaf in live.leaves]
        leaf, number, ranks = _columns(torch.tensor(self._counts, dtype=torch.long))
        is_component = number < ranks
        on = number < (ranks.double() * config.rank).long()
        first = (2 * on[is_component].to(live.dtype) - 1) * FIRST
        scales = torch.full((len(experts), len(live.leaves)), config.init, dtype=live.dtype)
        self._leaf, self._components = leaf.to(device), is_component.to(device)
        self.logits, self.scales = first.repeat(len(experts), 1).to(device), scales.to(device)
        self.tensors = {"logits": self.logits, "coefficients": self.scales}

    def coefficients(self, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return each column's coefficient: its leaf's, or 0 for components that are off."""
        tensors = tensors or self.tensors
        return self._on(tensors["logits"]) * tensors["coefficients"][:, self._leaf]

    def collect(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Set the coefficients' gradients from what is on, and the logits' straight through."""
        gradient = summed(self._live.gradient())
        parts = (gradient * self._on(self.logits)).split_with_sizes(self._counts, dim=1)
        self.scales.grad = torch.stack([part.sum(dim=1) for part in parts], dim=1)
        probabilities = (self.logits / TEMPERATURE).sigmoid()
        slopes = probabilities * (1 - probabilities) / TEMPERATURE
        component_gradient = (gradient * self.scales[:, self._leaf])[:, self._components]
        self.logits.grad = component_gradient * slopes

    def check(self, step: int) -> None:
        """Raise `SearchStoppedError` for coefficients that are not finite or too large."""
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
        """Return 1 or 0 for every column; columns that are not components are always on."""
        on = torch.ones(len(logits), self._live.columns, dtype=logits.dtype, device=logits.device)
        on[:, self._components] = (logits > 0).to(logits.dtype)
        return on


def _columns(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for every column its leaf, its index there, and that leaf's number of components.

    A leaf's last column is not a component. It holds the remainder, or the whole task vector.
    """
    leaf = torch.arange(len(counts)).repeat_interleave(counts)
    number = torch.arange(len(leaf)) - (counts.cumsum(0) - counts)[leaf]
    return leaf, number, (counts - 1)[leaf]
