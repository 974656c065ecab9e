"""Embeddings of different vocabulary sizes, brought to the largest: `alignment.vocab: pad`.

Row i is taken to be the same token in every model that has it: tokens were appended. A row that an
expert lacks is the base's, so that it changes nothing; a row that the base lacks is the mean of the
experts that have it, so that a token that one expert learned comes out as that expert has it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fusion_core.weights.ranges import read_any
from fusion_core.weights.source import WeightSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core.weights.source import TensorInfo

_EMBEDDINGS = re.compile(
    r"(.*\.)?(embed_tokens|tok_embeddings|token_embedding|word_embeddings|embed_in|embed_out|wte"
    r"|shared|lm_head|output_projection|predictions(\.decoder)?)\.(weight|bias)"
)


def differs_in_vocabulary(one: TensorInfo, other: TensorInfo) -> bool:
    """Tell whether two tensors are embeddings of different numbers of tokens."""
    return (
        _EMBEDDINGS.fullmatch(one.name) is not None
        and len(one.shape) == len(other.shape) > 0
        and one.shape[1:] == other.shape[1:]
        and one.shape[0] != other.shape[0]
        and one.dtype.is_floating_point
        and other.dtype.is_floating_point
    )


class PaddedSource(WeightSource):
    """A source whose embeddings have more rows: those of `filler`, or zeros without one."""

    def __init__(
        self, source: WeightSource, rows: Mapping[str, int], filler: WeightSource | None
    ) -> None:
        """`rows` maps the names of tensors to their number of rows here."""
        self._source = source
        self._filler = filler
        self.is_delta = source.is_delta
        self.cut = source.cut if filler is None else source.cut.coarser(filler.cut)
        self.infos = {
            name: replace(info, shape=(rows[name], *info.shape[1:])) if name in rows else info
            for name, info in source.infos.items()
        }

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read what the source has, then what fills it up."""
        own = self._source.infos[name]
        if stop <= own.numel:
            return read_any(self._source, name, start, stop)
        begin = max(start, own.numel)
        if self._filler is None:
            rest = torch.zeros(stop - begin, dtype=own.dtype)
        else:
            rest = read_any(self._filler, name, begin, stop).to(own.dtype)
        if start >= own.numel:
            return rest
        return torch.cat([read_any(self._source, name, start, own.numel), rest])

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the source's own, of a tensor that has no more rows than there."""
        is_padded = self.infos[name].shape != self._source.infos[name].shape
        return super().ranges(name) if is_padded else self._source.ranges(name)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The source, and what fills it up."""
        return (self._source,) if self._filler is None else (self._source, self._filler)

    def describe(self) -> str:
        """Name the source."""
        return self._source.describe()


class MeanSource(WeightSource):
    """The mean of the models that have an element; the filler of a base with fewer tokens."""

    def __init__(self, models: Sequence[WeightSource], rows: Mapping[str, int]) -> None:
        self._models = models
        first = {name: next(model for model in models if name in model.infos) for name in rows}
        self.infos = {
            name: replace(
                first[name].infos[name], shape=(count, *first[name].infos[name].shape[1:])
            )
            for name, count in rows.items()
        }

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Average, from one model's end to the next one's."""
        sizes = {model.infos[name].numel for model in self._models if name in model.infos}
        ends = sorted({stop, *(size for size in sizes if start < size < stop)})
        spans = zip([start, *ends], ends, strict=False)
        return torch.cat([self._mean(name, *span) for span in spans])

    def _mean(self, name: str, start: int, stop: int) -> torch.Tensor:
        having = [
            model
            for model in self._models
            if name in model.infos and model.infos[name].numel >= stop
        ]
        parts = [read_any(each, name, start, stop) for each in having]
        wide = (
            torch.float64 if any(part.dtype is torch.float64 for part in parts) else torch.float32
        )
        total = parts[0].to(wide, copy=True)
        for part in parts[1:]:
            total += part
        return total / len(parts)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The models."""
        return tuple(self._models)

    def describe(self) -> str:
        """Name the models."""
        return f"the mean of {', '.join(model.describe() for model in self._models)}"


def vocabulary_of(source: WeightSource) -> int:
    """Return the number of tokens that a model has embeddings for; 0 if it has none."""
    found = (
        info.shape[0]
        for name, info in source.infos.items()
        if len(info.shape) > 1 and _EMBEDDINGS.fullmatch(name)
    )
    return max(found, default=0)
