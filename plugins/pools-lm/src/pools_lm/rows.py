"""Weights whose embeddings and heads have other rows: by token, read as they are needed.

Nothing is gathered beforehand. A range of a tensor is a range of rows; each comes from the first of
several layers that has it, and rows that lie side by side in a file are read at once. A tensor is
known by its name in the live model, because models may spell it differently.
"""

from __future__ import annotations

import hashlib
from collections import ChainMap
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import torch

from fusion_core.weights import Cut, Origin, WeightSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor


class Rows(Protocol):
    """Where rows come from."""

    @property
    def sources(self) -> Sequence[WeightSource]:
        """What they are read from."""

    def has(self, tensor: str) -> bool:
        """Tell whether there are rows of a tensor here."""

    def take(self, tensor: str, rows: Tensor) -> Tensor:
        """Return rows by their numbers here, of shape (rows, width)."""


@dataclass(frozen=True)
class OwnRows:
    """The rows of a model's own tensors, which `names` has by those of the live model."""

    source: WeightSource
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
        """Read rows in any order, those that lie together at once."""
        name, width = self.names[tensor], self.width(tensor)
        found = torch.empty(len(rows), width, dtype=self.source.infos[name].dtype)
        ordered, places = rows.sort()
        for first, last, part in self._spans(name, ordered, width):
            read = self.source.read(name, first * width, last * width)
            found[places[part]] = read.reshape(-1, width)[ordered[part] - first]
        return found

    def width(self, tensor: str) -> int:
        """Return how many elements a row of a tensor has."""
        return self.source.infos[self.names[tensor]].numel // self.count

    def _spans(self, name: str, ordered: Tensor, width: int) -> Iterator[tuple[int, int, slice]]:
        """Say which rows are read at once, and which of the ordered ones these serve.

        Runs or, of a source that is read in blocks, the blocks.
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
    """The mean of the models that know a row's token, fp32 at least; zeros where none does."""

    #: models, and which of their own rows each row is; -1 for a token that they do not know
    models: Sequence[tuple[OwnRows, Tensor]]

    @property
    def sources(self) -> Sequence[WeightSource]:
        """The models."""
        return [own.source for own, _ in self.models]

    def has(self, tensor: str) -> bool:
        """Tell whether any of the models stores a tensor."""
        return any(own.has(tensor) for own, _ in self.models)

    def take(self, tensor: str, rows: Tensor) -> Tensor:
        """Average."""
        having = [(own, index[rows]) for own, index in self.models if own.has(tensor)]
        total = torch.zeros(len(rows), having[0][0].width(tensor))
        count = torch.zeros(len(rows), 1)
        for own, index in having:
            known = index >= 0
            found = own.take(tensor, index[known])
            total = total.to(torch.promote_types(found.dtype, total.dtype))
            total[known] += found.to(total.dtype)
            count[known] += 1
        return total / count.clamp(min=1)


@dataclass(frozen=True)
class PieceRows:
    """The mean of a model's own rows of the pieces that its tokenizer cuts a token into, fp32."""

    own: OwnRows
    #: the pieces' numbers, one token's after the other's, and where each row's begin
    pieces: Tensor
    begins: Tensor

    @property
    def sources(self) -> Sequence[WeightSource]:
        """The model."""
        return self.own.sources

    def has(self, tensor: str) -> bool:
        """Tell whether the model stores a tensor."""
        return self.own.has(tensor)

    def take(self, tensor: str, rows: Tensor) -> Tensor:
        """Average the pieces' rows."""
        counts = self.begins[rows + 1] - self.begins[rows]
        ends = counts.cumsum(0)
        places = torch.arange(int(ends[-1])) + (
            self.begins[rows] - ends + counts
        ).repeat_interleave(counts)
        found = self.own.take(tensor, self.pieces[places])
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        total = found.new_zeros(len(rows), found.shape[1])
        total.index_add_(0, torch.arange(len(rows)).repeat_interleave(counts), found)
        return total / counts[:, None]


@dataclass(frozen=True)
class Layer:
    """Rows, and which of them each row of a tensor is; -1 where another layer has it."""

    rows: Rows
    index: Tensor


class TokenSource(WeightSource):
    """A model whose tensors of tokens have `count` rows, from the first layer that has each.

    A row that no layer has is zero. `axes` says which dimension of a tensor is the tokens'; what
    lies before it is 1.
    """

    def __init__(
        self, own: OwnRows, axes: Mapping[str, int], count: int, layers: Sequence[Layer]
    ) -> None:
        self._source = own.source
        self._live = {there: here for here, there in own.names.items()}
        self._count = count
        self._layers = layers
        self._digest = _digest_of(layers)
        self.is_delta = own.source.is_delta
        self.infos = {
            name: replace(info, shape=_resized(info.shape, axes[self._live[name]], count))
            if name in self._live
            else info
            for name, info in own.source.infos.items()
        }
        self.cut = own.source.cut
        for source in self.sources:
            self.cut = self.cut.coarser(source.cut)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Read a range of what the model has, or of rows."""
        if name not in self._live:
            return self._source.read(name, start, stop)
        width = self.infos[name].numel // self._count
        first, last = start // width, -(-stop // width)
        rows = self._rows(name, first, last, width).reshape(-1)
        return rows[start - first * width : stop - first * width]

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the model's own, of what is not rows."""
        return super().ranges(name) if name in self._live else self._source.ranges(name)

    def _rows(self, name: str, first: int, last: int, width: int) -> Tensor:
        found = torch.zeros(last - first, width, dtype=self.infos[name].dtype)
        lacking = torch.ones(last - first, dtype=torch.bool)
        for layer in self._layers:
            index = layer.index[first:last]
            here = lacking & (index >= 0)
            if here.any() and layer.rows.has(self._live[name]):
                found[here] = layer.rows.take(self._live[name], index[here]).to(found.dtype)
                lacking &= ~here
        return found

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The model, and others that rows come from."""
        others = (source for layer in self._layers for source in layer.rows.sources)
        return tuple({id(each): each for each in (self._source, *others)}.values())

    def describe(self) -> str:
        """Name the model."""
        return self._source.describe()

    @property
    def origin(self) -> Origin | None:
        """What identifies the model, and which rows are read of it."""
        of_model = self._source.origin
        if of_model is None:
            return None
        rows = {"rows by token": {"sha256": self._digest}}
        files = ChainMap(rows, of_model.files)  # type: ignore[arg-type] # looked at, not changed
        return Origin(files=files, inputs=of_model.inputs)


def _digest_of(layers: Sequence[Layer]) -> str:
    digest = hashlib.sha256()
    for layer in layers:
        digest.update(layer.index.numpy().tobytes())
    return digest.hexdigest()


def _resized(shape: tuple[int, ...], axis: int, count: int) -> tuple[int, ...]:
    return (*shape[:axis], count, *shape[axis + 1 :])
