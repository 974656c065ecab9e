"""Learned coefficients that are drawn towards their tensor's own, the more the fewer examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_adamerging.learnable import LearnableCoefficients

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from fusion_adamerging.config import GranularityConfig
    from fusion_adapting import LiveMerge


class LearnableDeviations(LearnableCoefficients):
    """One coefficient per expert and tensor, `whole`, and the deviations of finer ones from it.

    Shapes (experts, leaves) and (experts, columns of leaves with several). The search also
    minimises `penalty` * the sum over experts of their mean squared deviation. A few examples then
    determine `whole`, and many examples the deviations too.
    """

    def __init__(
        self,
        live: LiveMerge,
        experts: Sequence[str],
        device: torch.device,
        config: GranularityConfig,
        penalty: float,
    ) -> None:
        super().__init__(live, experts, device, config)
        self._penalty, self._counts = penalty, [leaf.count for leaf in live.leaves]
        self._finer = self._columns["coefficients"]
        leaves = torch.arange(len(self._counts)).repeat_interleave(torch.tensor(self._counts))
        self._leaf = leaves.to(device)
        self.whole = torch.full(
            (len(experts), len(self._counts)), config.init, dtype=live.dtype, device=device
        )
        self.deviations = torch.zeros_like(self._coefficients["coefficients"])
        self.tensors = {"coefficients": self.deviations, "whole": self.whole}

    def coefficients(self, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return each tensor's coefficient plus the deviations."""
        tensors = tensors or self.tensors
        spread = tensors["whole"][:, self._leaf]
        spread[:, self._finer] += tensors["coefficients"]
        return spread

    def collect(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Sum the projected gradient over each tensor, and add the gradient of the penalty."""
        gradient = summed(self._live.gradient())
        parts = gradient.split_with_sizes(self._counts, dim=1)
        self.whole.grad = torch.stack([part.sum(dim=1) for part in parts], dim=1)
        pull = 2 * self._penalty / self.deviations.shape[1] * self.deviations
        self.deviations.grad = gradient[:, self._finer] + pull

    def settle(self) -> None:
        """Clamp the coefficients, and with them the deviations, to [0, 1] if asked to."""
        if self._clamp:
            whole = self.whole.clamp_(0, 1)[:, self._leaf[self._finer]]
            self.deviations.clamp_(-whole, 1 - whole)

    def shown(self) -> Mapping[str, float]:
        """Return each expert's mean coefficient, and the root mean square of its deviations."""
        spreads = self.deviations.square().mean(dim=1).sqrt().tolist()
        deviations = {
            f"deviation/{k}": spread for k, spread in zip(self.experts, spreads, strict=True)
        }
        return {**super().shown(), **deviations}
