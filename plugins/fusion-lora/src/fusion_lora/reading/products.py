"""Products of an adapter's factors, a few rows at a time, rounded as PEFT rounds them."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from fusion_core.weights import LowRank, on_one_core

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core import TensorInfo, WeightSource
    from fusion_lora.reading.factors import Product

#: The convolution of a weight with so many dimensions.
_CONVOLUTIONS = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
_MATRIX = 2


def wide_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype to multiply in: fp64 if a factor is fp64, else fp32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


class Stored(NamedTuple):
    """The weight that factors change: a tensor of the base or, for embeddings, of the adapter."""

    source: WeightSource
    key: str


class Products:
    """The products `scale * B @ A` of an adapter, as differences from the weights they change.

    DoRA rescales weight + product, so its differences depend on the values of the weight.
    """

    def __init__(self, adapter: WeightSource, products: Mapping[str, Product]) -> None:
        self.by_weight = dict(products)
        self._adapter = adapter
        self._norms: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()

    def on_new_base(self) -> Products:
        """Return the same products without the norms, which belong to a base."""
        return Products(self._adapter, self.by_weight)

    def read_rows(self, info: TensorInfo, changed: Stored, first: int, last: int) -> torch.Tensor:
        """Return the difference of the rows [first, last) of a weight from `changed`, flat."""
        product = self.by_weight[info.name]
        with on_one_core():  # on several, some processors round products otherwise
            change = self._multiply(product, info, first, last)
            if product.magnitude is not None:
                return self._rescale(product, info, changed, change, first)
        if product.rounded is not None:
            change = change.to(product.rounded).to(change.dtype)
        return change.reshape(-1)

    def low_rank(self, info: TensorInfo) -> LowRank | None:
        """Return a matrix's difference as factors (m, r) and (r, n), None if it has no factors."""
        product = self.by_weight[info.name]
        if product.magnitude or product.part or len(info.shape) != _MATRIX:
            return None
        rank, _ = self._adapter.infos[product.a].shape

        def read() -> tuple[torch.Tensor, torch.Tensor]:
            keys = (product.a, product.b)
            dtype = wide_dtype(*(self._adapter.infos[key].dtype for key in keys))
            a, b = (self._adapter.tensor(key).to(dtype).flatten(1) for key in keys)
            left, right = (a.T, b.T) if product.transposed else (b, a)
            return left * product.scale, right

        return LowRank(rank, read)

    def _multiply(self, product: Product, info: TensorInfo, first: int, last: int) -> torch.Tensor:
        """Return rows of a product, in the shape of the weight's rows.

        Operands have PEFT's order: the transposed product of the others may round differently.
        """
        dtype = wide_dtype(*(self._adapter.infos[key].dtype for key in (product.a, product.b)))
        if product.part is not None:
            values = self._multiply_experts(product, dtype, first, last)
        elif product.transposed:
            right = self._read_columns(product.a, first, last).to(dtype)
            values = (self._adapter.tensor(product.b).to(dtype).flatten(1) @ right).T
        else:
            rank = self._adapter.infos[product.b].shape[1]
            rows = self._adapter.read(product.b, first * rank, last * rank)
            left = rows.to(dtype).reshape(last - first, rank)
            right = self._adapter.tensor(product.a).to(dtype)
            values = (
                _convolve(left, right)
                if math.prod(right.shape[2:]) > 1
                else (left @ right.flatten(1))
            )
        return values.mul_(product.scale).reshape(last - first, *info.shape[1:])

    def _multiply_experts(
        self, product: Product, dtype: torch.dtype, first: int, last: int
    ) -> torch.Tensor:
        """Multiply the factors of one expert, or of several that the weight holds in a row."""
        part = product.part
        assert part is not None  # noqa: S101 - the caller looked
        a, b = (self._adapter.infos[key] for key in (product.a, product.b))
        rank, width = a.shape[0] // part.count, a.shape[1]
        joined = self._adapter.tensor(product.b).to(dtype)
        experts = range(first, last) if part.index is None else (part.index,)
        values = []
        for expert in experts:
            start = expert * rank * width
            right = self._adapter.read(product.a, start, start + rank * width)
            right = right.to(dtype).reshape(rank, width)
            left = joined[:, expert :: part.count]
            if part.index is not None:
                top, _ = part.rows or (0, b.shape[0])
                left = left[top + first : top + last]
            left = left.contiguous()
            values.append(right.T @ left.T if product.transposed else left @ right)
        return torch.stack(values) if part.index is None else values[0]

    def _rescale(
        self,
        product: Product,
        info: TensorInfo,
        changed: Stored,
        change: torch.Tensor,
        first: int,
    ) -> torch.Tensor:
        """Return magnitude * (weight + change) / norm - weight; fp64, so that the sum is exact."""
        assert product.magnitude is not None  # noqa: S101 - the caller looked
        row = math.prod(info.shape[1:])
        weight = changed.source.read(changed.key, first * row, first * row + change.numel())
        weight = weight.reshape(change.shape)
        magnitude = self._adapter.tensor(product.magnitude).to(change.dtype).flatten()
        moved = weight + change
        if product.transposed:
            factor = magnitude / self._column_norms(product, info, changed)
        else:
            norms = torch.linalg.norm(moved.flatten(1), dim=1)
            factor = magnitude[first : first + len(change)] / norms
            factor = factor.reshape(-1, *[1] * (change.dim() - 1))
        return (factor * moved).double().sub_(weight).reshape(-1)

    def _column_norms(self, product: Product, info: TensorInfo, changed: Stored) -> torch.Tensor:
        """Return the norms of a transposed weight's columns, which need the whole weight."""
        with self._lock:
            if info.name not in self._norms:
                change = self._multiply(product, info, 0, info.shape[0])
                moved = changed.source.tensor(changed.key).T + change.T.contiguous()
                self._norms[info.name] = torch.linalg.norm(moved, dim=1)
            return self._norms[info.name]

    def _read_columns(self, key: str, first: int, last: int) -> torch.Tensor:
        rank, width = self._adapter.infos[key].shape
        rows = [self._adapter.read(key, n * width + first, n * width + last) for n in range(rank)]
        return torch.stack(rows)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def _convolve(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Multiply (m, r) and (r, inputs, kernel...) as PEFT does: its sums round in another order."""
    convolve = _CONVOLUTIONS[right.dim()]
    kernel = left.reshape(*left.shape, *[1] * (right.dim() - 2))
    return convolve(right.transpose(0, 1), kernel).transpose(0, 1).contiguous()
