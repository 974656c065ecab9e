"""The inputs of packed experts, seen in the products of a live model.

No module sees the inputs of a single packed expert. A product with an expert ends in one of a few
operations of torch, and these are observed. If any other operation reads a packed parameter, not
all of its inputs are known.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from fusion_adapting._packed import PackedLayer, PackedWeights

#: Products of two operands, and the position of the first.
_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "mv": 0, "addmv": 1}
#: Products of rows, sorted by expert, with all experts; offsets end each expert's rows.
_GROUPED = {"_grouped_mm", "grouped_mm_fallback"}


class ProductObserver(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls `see(layer, rows)` for every product of a model with packed weights."""

    def __init__(
        self,
        weights: PackedWeights,
        see: Callable[[PackedLayer, Tensor], None],
        mask: Callable[[], Tensor | None],
    ) -> None:
        """`mask` returns the current call's padding mask, or None without padding."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = weights
        self._see = see
        self._mask = mask

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's signature
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation, after a look at its operands."""
        del types
        kwargs = kwargs or {}
        operands = tree_leaves((args, kwargs))
        owners = [owner for value in operands if (owner := self._weights.owner_of(value))]
        if owners and not func.is_view:
            with self:  # an operation of several, as `linear` is in inference mode
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            if len(owners) > 1 or not self._observe(func, args, kwargs):
                for owner in owners:
                    owner.is_understood = False
        return func(*args, **kwargs)

    def _observe(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:  # noqa: ANN401
        """Show the inputs of a product; return whether the operation is one, without padding."""
        if self._mask() is not None:  # which of the rows are padding is unknown
            return False
        name = func.overloadpacket.__name__
        if name in _GROUPED:
            offsets = kwargs.get("offs", args[2] if len(args) > 2 else None)  # noqa: PLR2004
            return offsets is not None and self._observe_grouped(args[0], args[1], offsets)
        if name not in _PRODUCTS:
            return False
        left, right = args[_PRODUCTS[name] : _PRODUCTS[name] + 2]
        if self._weights.owner_of(right) is not None:
            return self._observe_product(left, right, contracted=0)
        if self._weights.owner_of(left) is None:  # it is added, not multiplied
            return False
        return self._observe_product(_with_rows(right), left, contracted=1)

    def _observe_grouped(self, rows: Tensor, weight: Tensor, offsets: Tensor) -> bool:
        if rows.dim() != 2 or weight.dim() != 3:  # noqa: PLR2004
            return False
        ends = [0, *offsets.tolist()]
        return all(
            self._show(rows[start:stop], weight[expert], 0)
            for expert, (start, stop) in enumerate(pairwise(ends))
        )

    def _observe_product(self, rows: Tensor, weight: Tensor, *, contracted: int) -> bool:
        """Show the rows of a product, of shape (positions, inputs) or (experts, ...)."""
        if weight.dim() == 2:  # noqa: PLR2004 - of one expert
            return self._show(rows, weight, contracted)
        if weight.dim() != 3:  # noqa: PLR2004 - a row of a matrix
            return False
        # Every expert gets every position. An expert's inputs are zero where it is not chosen.
        return all(
            self._show(part[part.any(1)], matrix, contracted)
            for part, matrix in zip(rows, weight, strict=True)
        )

    def _show(self, rows: Tensor, weight: Tensor, contracted: int) -> bool:
        """Show the inputs of one expert."""
        owner = self._weights.owner_of(weight)
        layers = [] if owner is None else owner.layers_of(weight, contracted)
        for layer in layers:
            if len(rows):
                self._see(layer, rows)
        return bool(layers)


def _with_rows(columns: Tensor) -> Tensor:
    """Turn inputs in columns, or a single one, into inputs in rows."""
    return columns[None] if columns.dim() == 1 else columns.mT


@contextmanager
def expert_by_expert(model: nn.Module) -> Iterator[None]:
    """Let mixtures of transformers multiply by one expert at a time, as they do in any dtype."""
    modules: list[Any] = [
        module
        for module in model.modules()
        if hasattr(module, "set_experts_implementation")
        and hasattr(module, "get_experts_implementation")
    ]
    switches = [
        (module.set_experts_implementation, module.get_experts_implementation())
        for module in modules
    ]
    try:
        for switch, _ in switches:
            switch("eager")
        yield
    finally:
        for switch, before in reversed(switches):
            switch(before)
