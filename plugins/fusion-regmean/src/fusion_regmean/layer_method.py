"""The base of methods that treat the tensors of layers that a live model calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from fusion_core.weights import is_matrix

if TYPE_CHECKING:
    from collections.abc import Collection

    from fusion_core import ModelPool, RunContext, TensorInfo


class ForLayers:
    """A method for tensors of called layers, which says what happens to all other tensors.

    Headers exclude tensors that are neither matrices nor vectors. Which of the remaining tensors
    belong to called layers, only the run learns. It then warns of the others.
    """

    #: a fused projection is one layer, and a packed mixture has none
    uses_stored_tensors = True
    #: what happens to other tensors, as the plan and the warnings say it
    other_tensors: ClassVar[str] = "averaged"
    #: whether the method also treats layers whose weights are vectors
    treats_vectors: ClassVar[bool] = False

    def fallback(self, info: TensorInfo) -> str | None:
        """Say what happens to a tensor that cannot belong to a layer."""
        return None if self._may_treat(info) else self.other_tensors

    def warn_of_untreated(
        self, treated: Collection[str], pool: ModelPool[Any], context: RunContext
    ) -> None:
        """Warn of tensors that could belong to a layer, but that no called layer uses."""
        floating = [info for info in pool.reference.infos.values() if info.dtype.is_floating_point]
        untreated = [i for i in floating if i.name not in treated and self._may_treat(i)]
        if not untreated:
            return
        largest = max(untreated, key=lambda info: (info.numel, info.name))
        share = sum(i.numel for i in untreated) / sum(i.numel for i in floating)
        noun = "1 tensor" if len(untreated) == 1 else f"{len(untreated)} tensors"
        method = context.stage or type(self).__name__
        context.warn(
            f"{method} observed no layer that uses {noun} ({share:.2%} of the parameters, the "
            f"largest: {largest.name}): {self.other_tensors}"
        )

    def _may_treat(self, info: TensorInfo) -> bool:
        return is_matrix(info.shape) or (self.treats_vectors and len(info.shape) == 1)
