"""The base of methods that treat the tensors of layers which they see at work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from fusion_core.weights import is_matrix

if TYPE_CHECKING:
    from collections.abc import Collection

    from fusion_core import ModelPool, RunContext, TensorInfo

_VECTOR = 1


class ForLayers:
    """A method for tensors of layers that are called, which says what becomes of all others.

    Headers tell that a tensor is neither a matrix nor a vector, and so not of such a layer. Which
    of the others are, the run learns from live models, and says of what is left.
    """

    #: a fused projection is one layer, and a packed mixture has none
    sees_stored_tensors = True
    otherwise: ClassVar[str] = "averaged"
    #: whether vectors, too, may be a layer's that the method treats
    treats_vectors: ClassVar[bool] = False

    def fallback(self, info: TensorInfo) -> str | None:
        """Say what happens to a tensor that no layer has."""
        return None if self._may_treat(info) else self.otherwise

    def say_what_is_left(
        self, treated: Collection[str], pool: ModelPool[Any], context: RunContext
    ) -> None:
        """Warn of the tensors that might have been treated, but that no layer at work has."""
        floating = [e for e in pool.reference.infos.values() if e.dtype.is_floating_point]
        left = [e for e in floating if e.name not in treated and self._may_treat(e)]
        if not left:
            return
        largest = max(left, key=lambda info: (info.numel, info.name))
        share = sum(e.numel for e in left) / sum(e.numel for e in floating)
        noun = "1 tensor" if len(left) == 1 else f"{len(left)} tensors"
        method = context.stage or type(self).__name__
        context.warn(
            f"{method} saw no layer at work with {noun} ({share:.2%} of the parameters, the "
            f"largest: {largest.name}): {self.otherwise}"
        )

    def _may_treat(self, info: TensorInfo) -> bool:
        return is_matrix(info.shape) or (self.treats_vectors and len(info.shape) == _VECTOR)
