"""A model whose embeddings have one row per token of another tokenizer."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from fusion_core.weights import Cut, WeightSource
from fusion_tokenizer.plan import mean_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Executor

    from torch import Tensor

    from fusion_core.weights import TensorInfo
    from fusion_tokenizer.embeddings import Embeddings
    from fusion_tokenizer.plan import RowPlan


class TransplantedSource(WeightSource):
    """A model with other rows in its embeddings. All other tensors are the model's, byte by byte.

    Copied rows keep their bits. Others are computed in fp32, or in fp64 for a model in fp64, and
    rounded once. Reading holds the model's own embeddings in memory.
    """

    def __init__(
        self, embeddings: Embeddings, plans: Mapping[str, RowPlan], token_rows: Tensor
    ) -> None:
        """`plans` has one plan per embedding. `token_rows` are the rows that have a token."""
        self._source = embeddings.source
        self._plans = plans
        self._matrices = {
            name: _Matrix(embeddings, name, plan, token_rows) for name, plan in plans.items()
        }
        self.cut = self._source.cut
        self.infos: Mapping[str, TensorInfo] = {
            name: replace(info, shape=(plans[name].count, *info.shape[1:]))
            if name in plans
            else info
            for name, info in self._source.infos.items()
        }

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Read a range of elements, from whole rows for an embedding."""
        if name not in self._plans:
            return self._source.read(name, start, stop)
        width = self.infos[name].numel // self._plans[name].count
        first, last = start // width, -(-stop // width)
        rows = self._matrices[name].read(first, last).reshape(-1)
        return rows[start - first * width : stop - first * width]

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield ranges of whole rows for an embedding, and the model's own for other tensors."""
        if name in self._plans:
            return Cut.ROW.ranges(self.infos[name])
        return self._source.ranges(name)

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Prepare the model, and read an embedding before its rows are computed."""
        if name in self._matrices:
            self._matrices[name].load()
        else:
            super().prepare(executor, name)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The model."""
        return (self._source,)

    @property
    def kept_bytes(self) -> int:
        """The bytes of the model's embeddings."""
        return sum(self._source.infos[name].nbytes for name in self._plans)


class _Matrix:
    """The rows of one transplanted embedding."""

    def __init__(
        self, embeddings: Embeddings, name: str, plan: RowPlan, token_rows: Tensor
    ) -> None:
        self._embeddings, self._name, self._plan = embeddings, name, plan
        self._token_rows = token_rows

    def load(self) -> None:
        """Read the model's matrix, and compute the means of its rows."""
        _ = self._matrix, self._mean, self._center

    @cached_property
    def _matrix(self) -> Tensor:
        return self._embeddings.matrix(self._name)

    @cached_property
    def _mean(self) -> Tensor:
        """The mean of the rows that have a token."""
        return mean_of(self._matrix, self._token_rows).to(self._matrix.dtype)

    @cached_property
    def _center(self) -> Tensor:
        """The mean of the rows that complete combinations, in the dtype of the work."""
        center = self._plan.combinations.center
        rows = self._token_rows[:0] if center is None else center
        dtype = torch.promote_types(self._matrix.dtype, torch.float32)
        return mean_of(self._matrix, rows).to(dtype)

    def read(self, first: int, last: int) -> Tensor:
        """Return the rows from `first` up to `last`."""
        copies, slots = self._plan.copies[first:last], self._plan.slots[first:last]
        rows = self._mean.repeat(last - first, 1)
        rows[copies >= 0] = self._matrix[copies[copies >= 0]]
        combined = self._plan.combinations.take(self._matrix, slots[slots >= 0], self._center)
        rows[slots >= 0] = combined.to(rows.dtype)
        return rows
