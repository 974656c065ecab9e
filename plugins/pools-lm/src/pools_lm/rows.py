"""Weights whose embeddings and heads get new rows, one per target token.

Rows are read only when a merge asks for them. A range of a tensor is a range of rows. Each row
comes from the first layer that has it. Neighbouring rows of a file are read together. A tensor goes
by its name in the live model, because files may name it differently.
"""

from __future__ import annotations

import hashlib
from collections import ChainMap
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import torch

from fusion_core.weights import Cut, Origin, WeightSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from fusion_core.weights import Contradiction


class Rows(Protocol):
    """A supplier of rows."""

    @property
    def sources(self) -> Sequence[WeightSource]:
        """The models that rows are read from."""

    def has(self, tensor: str) -> bool:
        """Tell whether there are rows of a tensor."""

    def take(self, tensor: str, rows: Tensor) -> Tensor:
        """Return rows by number, shape (rows, width)."""


@dataclass(frozen=True)
class ModelRows:
    """The rows of a model's own tensors."""

    source: WeightSource
    #: stored names by live names
    names: Mapping[str, str]
    count: int

    @property
    def sources(self) -> Sequence[WeightSource]:
        """The model."""
        return (self.source,)

    def has(self, tensor: str) -> bool:
        """Tell whether the model stores a tensor."""
        return tensor in self.names

    def take(self, tensor: str, rows: Tensor) -> Tensor:
        """Read rows in any order; neighbouring rows are read together."""
        name, width = self.names[tensor], self.width(tensor)
        values = torch.empty(len(rows), width, dtype=self.source.infos[name].dtype)
        ordered, positions = rows.sort()
        for first, last, part in self._spans(name, ordered, width):
            read = self.source.read(name, first * width, last * width)
            values[positions[part]] = read.reshape(-1, width)[ordered[part] - first]
        return values

    def width(self, tensor: str) -> int:
        """Return the number of elements per row of a tensor."""
        return self.source.infos[self.names[tensor]].numel // self.count

    def _spans(self, name: str, ordered: Tensor, width: int) -> Iterator[tuple[int, int, slice]]:
        """Yield ranges of rows to read, each with the slice of `ordered` that it covers.

        A range is a run of consecutive rows or, for a source that is read in blocks, one block.
        """
        is_free = self.source.cut is Cut.ELEMENT
        _, block = next(self.source.cut.ranges(self.source.infos[name]))
        keys, gap = (ordered, 1) if is_free else (ordered // (block // width), 0)
        starts = ((keys.diff() > gap).nonzero().flatten() + 1).tolist()
        for begin, end in pairwise([0, *starts, len(ordered)] if len(ordered) else []):
            if is_free:
                yield int(ordered[begin]), int(ordered[end - 1]) + 1, slice(begin, end)
            else:
                first = int(keys[begin]) * (block // width)
                yield first, min(first + block // width, self.count), slice(begin, end)


@dataclass(frozen=True)
class MeanRows:
    """The mean over the models that know a row's token, at least fp32; zeros if none does."""

    #: each model, with its own row for each target row; -1 for a token that it does not know
    models: Sequence[tuple[ModelRows, Tensor]]

    @property
    def sources(self) -> Sequence[WeightSource]:
        """The models."""
        return [model.source for model, _ in self.models]

    def has(self, tensor: str) -> bool:
        """Tell whether any of the models stores a tensor."""
        return any(model.has(tensor) for model, _ in self.models)

    def take(self, tensor: str, rows: Tensor) -> Tensor:
        """Average the models' rows."""
        having = [(model, index[rows]) for model, index in self.models if model.has(tensor)]
        total = torch.zeros(len(rows), having[0][0].width(tensor))
        count = torch.zeros(len(rows), 1)
        for model, index in having:
            known = index >= 0
            values = model.take(tensor, index[known])
            total = total.to(torch.promote_types(values.dtype, total.dtype))
            total[known] += values.to(total.dtype)
            count[known] += 1
        return total / count.clamp(min=1)


@dataclass(frozen=True)
class PieceRows:
    """The mean of a model's own rows over the pieces of each token, at least fp32."""

    model: ModelRows
    #: the ids of the pieces, concatenated over target rows
    pieces: Tensor
    #: start of each target row's pieces, and the end of the last
    offsets: Tensor

    @property
    def sources(self) -> Sequence[WeightSource]:
        """The model."""
        return self.model.sources

    def has(self, tensor: str) -> bool:
        """Tell whether the model stores a tensor."""
        return self.model.has(tensor)

    def take(self, tensor: str, rows: Tensor) -> Tensor:
        """Average the rows of the pieces."""
        counts = self.offsets[rows + 1] - self.offsets[rows]
        ends = counts.cumsum(0)
        positions = torch.arange(int(ends[-1])) + (
            self.offsets[rows] - ends + counts
        ).repeat_interleave(counts)
        values = self.model.take(tensor, self.pieces[positions])
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        total = values.new_zeros(len(rows), values.shape[1])
        total.index_add_(0, torch.arange(len(rows)).repeat_interleave(counts), values)
        return total / counts[:, None]


@dataclass(frozen=True)
class ZeroRows:
    """Zeros in the shape of a model's rows."""

    model: ModelRows

    @property
    def sources(self) -> Sequence[WeightSource]:
        """No model: nothing is read."""
        return ()

    def has(self, tensor: str) -> bool:
        """Tell whether the model stores a tensor."""
        return self.model.has(tensor)

    def take(self, tensor: str, rows: Tensor) -> Tensor:
        """Return zeros."""
        return torch.zeros(len(rows), self.model.width(tensor))


@dataclass(frozen=True)
class Layer:
    """Rows, with the number of the row for each target row; -1 where a later layer has it."""

    rows: Rows
    index: Tensor


class TokenSource(WeightSource):
    """A model whose token tensors have `count` rows, each from the first layer that has it.

    A row that no layer has is zero. `axes` gives the token dimension per tensor. All dimensions
    before it have size 1. Rows of other models are those of `reference`, the base or the first
    expert, which gets the same: so they are rounded to its dtype, and never to a narrower one.
    """

    def __init__(
        self,
        rows: ModelRows,
        axes: Mapping[str, int],
        count: int,
        layers: Sequence[Layer],
        *,
        reference: ModelRows,
    ) -> None:
        self._rows, self._source = rows, rows.source
        self._live = {stored: live for live, stored in rows.names.items()}
        self._reference = reference
        self._count = count
        self._layers = layers
        digest = hashlib.sha256()
        for layer in layers:
            digest.update(layer.index.numpy().tobytes())
        self._digest = digest.hexdigest()
        self.is_delta = rows.source.is_delta
        self.infos = dict(rows.source.infos)
        for live, name in rows.names.items():
            info = self.infos[name]
            shape = list(info.shape)
            shape[axes[live]] = count
            dtype = info.dtype if self.is_delta else self._dtype_of_others(live, info.dtype)
            dtype = torch.promote_types(info.dtype, dtype)
            self.infos[name] = replace(info, shape=tuple(shape), dtype=dtype)
        self.cut = rows.source.cut
        for source in self.sources:
            self.cut = self.cut.coarser(source.cut)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Read a range of elements, from rows for a token tensor."""
        if name not in self._live:
            return self._source.read(name, start, stop)
        width = self.infos[name].numel // self._count
        first, last = start // width, -(-stop // width)
        rows = self._read_rows(name, first, last, width).reshape(-1)
        return rows[start - first * width : stop - first * width]

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the model's own ranges, except for token tensors."""
        return super().ranges(name) if name in self._live else self._source.ranges(name)

    def _read_rows(self, name: str, first: int, last: int, width: int) -> Tensor:
        live = self._live[name]
        values = torch.zeros(last - first, width, dtype=self.infos[name].dtype)
        lacking = torch.ones(last - first, dtype=torch.bool)
        for layer in self._layers:
            index = layer.index[first:last]
            here = lacking & (index >= 0)
            if here.any() and layer.rows.has(live):
                rows = layer.rows.take(live, index[here])
                if layer.rows is not self._rows:
                    rows = rows.to(self._dtype_of_others(live, values.dtype))
                values[here] = rows.to(values.dtype)
                lacking &= ~here
        return values

    def _dtype_of_others(self, live: str, default: torch.dtype) -> torch.dtype:
        """Return the dtype of the reference's tensor, or a default if the reference lacks it."""
        reference = self._reference
        name = reference.names.get(live)
        return default if name is None else reference.source.infos[name].dtype

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The model, and the models of other layers."""
        others = (source for layer in self._layers for source in layer.rows.sources)
        return tuple({id(source): source for source in (self._source, *others)}.values())

    def contradictions(self, base_config: Mapping[str, Any]) -> Iterator[Contradiction]:
        """Yield those of the model; the models of other layers have their own."""
        return self._source.contradictions(base_config)

    @property
    def origin(self) -> Origin | None:
        """The model's origin, with a digest of the selected rows."""
        origin = self._source.origin
        if origin is None:
            return None
        rows = {"rows by token": {"sha256": self._digest}}
        files = ChainMap(rows, origin.files)  # type: ignore[arg-type] # read, never written
        return Origin(files=files, inputs=origin.inputs)
