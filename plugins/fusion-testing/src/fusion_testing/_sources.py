"""Views of sources with changed values, shapes, dtypes or cuts, as inputs of checks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fusion_core.weights import Cut, RenamedSource, WeightSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from fusion_core.weights import TensorInfo

    #: (tensor name, start of the range, values) -> changed values
    Change = Callable[[str, int, Tensor], Tensor]

#: Multiples of this are added and subtracted without rounding.
_GRID = 2.0**-10


class Changed(WeightSource):
    """A view of a source that changes values as they are read."""

    def __init__(
        self,
        source: WeightSource,
        change: Change,
        *,
        infos: Mapping[str, TensorInfo] | None = None,
        cut: Cut | None = None,
    ) -> None:
        self._source = source
        self._change = change
        self.infos = source.infos if infos is None else infos
        self.cut = source.cut if cut is None else source.cut.coarser(cut)
        self.is_delta = source.is_delta

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Read a range of the source, and change its values."""
        values = self._source.read(name, start, stop)
        return self._change(name, start, values).to(self.infos[name].dtype)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The original source."""
        return (self._source,)


def recut(source: WeightSource, cut: Cut) -> WeightSource:
    """Return a view that cannot be cut finer than `cut`."""
    return Changed(source, _unchanged, cut=cut)


def widened(source: WeightSource) -> WeightSource:
    """Return a view with all floating-point tensors in fp32."""
    infos = {
        name: replace(info, dtype=torch.float32) if info.dtype.is_floating_point else info
        for name, info in source.infos.items()
    }
    return Changed(source, _unchanged, infos=infos)


def on_grid(source: WeightSource) -> WeightSource:
    """Return a view with values rounded such that their differences are exact."""
    return Changed(source, _rounded)


def shifted(source: WeightSource) -> WeightSource:
    """Return a view with 1 added to all floating-point values."""
    return Changed(source, lambda _, __, values: values + 1 if _is_float(values) else values)


def spoiled(source: WeightSource, tensor: str) -> WeightSource:
    """Return a view with NaN as the first value of one tensor."""

    def change(name: str, start: int, values: Tensor) -> Tensor:
        if name != tensor or start:
            return values
        values = values.clone()
        values[0] = torch.nan
        return values

    return Changed(source, change)


def as_delta(source: WeightSource, base: WeightSource) -> WeightSource:
    """Return the difference of a source from the base, with `is_delta` set."""

    def change(name: str, start: int, values: Tensor) -> Tensor:
        if not _is_float(values):
            return values
        return values - base.read(name, start, start + values.numel())

    delta = Changed(source, change)
    delta.is_delta = True
    return delta


def without(source: WeightSource, tensor: str) -> WeightSource:
    """Return a view without one tensor."""
    return RenamedSource(source, {name: name for name in source.infos if name != tensor})


def doubled(source: WeightSource, tensor: str, *, name: str) -> WeightSource:
    """Return a view with one tensor under a second name as well."""
    return RenamedSource(source, {**{key: key for key in source.infos}, name: tensor})


def flattened(source: WeightSource, tensor: str) -> WeightSource:
    """Return a view with one tensor in another shape."""
    info = source.infos[tensor]
    infos = {**source.infos, tensor: replace(info, shape=(info.numel, 1, 1))}
    return Changed(source, _unchanged, infos=infos)


def _unchanged(_: str, __: int, values: Tensor) -> Tensor:
    return values


def _rounded(_: str, __: int, values: Tensor) -> Tensor:
    return (values / _GRID).round() * _GRID if _is_float(values) else values


def _is_float(values: Tensor) -> bool:
    return values.dtype.is_floating_point
