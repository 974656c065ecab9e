"""The base of methods that treat the tensors of layers that a live model calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from fusion_adapting import is_packed
from fusion_core.weights import is_matrix

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from fusion_core import ModelPool, RunContext, TensorInfo
    from fusion_core.weights import Layout


class ForLayers:
    """A method for tensors of called layers, which says what happens to all other tensors.

    Headers exclude tensors that are neither matrices nor vectors. Which of the remaining tensors
    belong to called layers, only the run learns. It then warns of the others. A fused projection is
    one layer, and every packed expert's matrix is one.
    """

    #: what happens to other tensors, as the plan and the warnings say it
    other_tensors: ClassVar[str] = "averaged"
    #: whether the method also treats layers whose weights are vectors
    treats_vectors: ClassVar[bool] = False
    #: whether the method treats packed experts
    treats_packed: ClassVar[bool] = True

    def matrices_of(self, info: TensorInfo, layout: Layout) -> Sequence[TensorInfo]:
        """Return the matrices of packed experts, and any other tensor as it is stored."""
        is_batch = is_packed(info.shape, layout.slots.get(info.name, ()))
        return layout.describe_matrices(info) if is_batch and self.treats_packed else (info,)

    def fallback(self, info: TensorInfo) -> str | None:
        """Say what happens to a tensor that cannot belong to a layer."""
        return None if self._may_treat(info) else self.other_tensors

    def warn_of_untreated(
        self, treated: Collection[str], pool: ModelPool[Any], context: RunContext
    ) -> None:
        """Warn of tensors that could belong to a layer, but that no called layer uses."""
        layout = pool.layout
        floating = [
            matrix
            for info in pool.reference.infos.values()
            if info.dtype.is_floating_point
            for matrix in self.matrices_of(info, layout)
        ]
        untreated = [i for i in floating if i.name not in treated and self._may_treat(i)]
        if not untreated:
            return
        largest = max(untreated, key=lambda info: (info.numel, info.name))
        share = sum(i.numel for i in untreated) / sum(i.numel for i in floating)
        noun = "1 tensor" if len(untreated) == 1 else f"{len(untreated)} tensors"
        method = context.stage or type(self).__name__
        context.warn(
            f"{method} observed no layer with nonzero inputs that uses {noun} ({share:.2%} of the "
            f"parameters, the largest: {largest.name}): {self.other_tensors}"
        )

    def _may_treat(self, info: TensorInfo) -> bool:
        return is_matrix(info.shape) or (self.treats_vectors and len(info.shape) == 1)
