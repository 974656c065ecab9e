"""Embeddings of different vocabulary sizes, padded to the largest: `alignment.vocab: pad`.

Row i is taken to be the same token in every model that has it, because tokens are appended. A row
that an expert lacks is the base's, so that it changes nothing. A row that the base lacks, or any
without a base, is the mean of the experts that have it, so a token that only one expert learned
stays as it learned it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fusion_core.weights.ranges import read_range
from fusion_core.weights.source import WeightSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core.weights.source import TensorInfo

#: Embeddings and heads, with one row per token. The bias of BART and Marian has one column.
_EMBEDDINGS = re.compile(
    r"(.*\.)?(embed_tokens|tok_embeddings|token_embedding|word_embeddings|embeddings|embed_in"
    r"|embed_out|wte|shared|lm_head|generator_lm_head|vocab_projector|output_projection|decoder"
    r"|predictions)\.(weight|bias)|(.*\.)?final_logits_bias"
)


def differs_in_vocabulary(one: TensorInfo, other: TensorInfo) -> bool:
    """Tell whether two tensors are embeddings of different numbers of tokens."""
    return (
        _EMBEDDINGS.fullmatch(one.name) is not None
        and len(one.shape) == len(other.shape) > 0
        and one.shape != other.shape
        and resize(one, count_tokens(other)).shape == other.shape
        and one.dtype.is_floating_point
        and other.dtype.is_floating_point
    )


def count_tokens(info: TensorInfo) -> int:
    """Return the number of tokens of embeddings or a head."""
    return info.shape[-1] if _has_columns(info) else info.shape[0]


def resize(info: TensorInfo, count: int) -> TensorInfo:
    """Describe embeddings or a head with another number of tokens."""
    shape = (*info.shape[:-1], count) if _has_columns(info) else (count, *info.shape[1:])
    return replace(info, shape=shape)


def _has_columns(info: TensorInfo) -> bool:
    return len(info.shape) == 2 and info.shape[0] == 1 and info.name.endswith("final_logits_bias")  # noqa: PLR2004


def find_twin(info: TensorInfo, model: WeightSource) -> str | None:
    """Return a model's embeddings that may also be the head `info`, which the model lacks."""
    if _EMBEDDINGS.fullmatch(info.name) is None:
        return None
    names = (
        name
        for name, other in model.infos.items()
        if other.shape == info.shape and _EMBEDDINGS.fullmatch(name)
    )
    return next(names, None)


def vocabulary_size(source: WeightSource) -> int:
    """Return the number of tokens that a model has embeddings for; 0 if it has none."""
    sizes = [
        info.shape[0]
        for name, info in source.infos.items()
        if len(info.shape) > 1 and _EMBEDDINGS.fullmatch(name)
    ]
    return max(sizes, default=0)


class PaddedSource(WeightSource):
    """A source whose embeddings have more rows: those of `filler`, or zeros without one.

    Padded tensors have the wider dtype of both, so that rows of the filler are not rounded.
    """

    def __init__(
        self, source: WeightSource, rows: Mapping[str, int], filler: WeightSource | None
    ) -> None:
        """Pad the tensors that `rows` names to these numbers of rows."""
        self._source = source
        self._filler = filler
        self.is_delta = source.is_delta
        self.cut = source.cut if filler is None else source.cut.coarser(filler.cut)
        self.infos = dict(source.infos)
        for name in rows.keys() & source.infos.keys():
            info = source.infos[name]
            wider = info if filler is None else filler.infos[name]
            dtype = torch.promote_types(info.dtype, wider.dtype)
            self.infos[name] = replace(resize(info, rows[name]), dtype=dtype)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read what the source has, then the padding."""
        end, filler = self._source.infos[name].numel, self._filler
        parts = [read_range(self._source, name, min(start, end), min(stop, end))]
        if stop > end:
            span = max(start, end), stop
            padding = read_range(filler, name, *span) if filler else torch.zeros(stop - span[0])
            parts.append(padding)
        return torch.cat([part.to(self.infos[name].dtype) for part in parts])

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield those of the source, except for padded tensors."""
        is_padded = self.infos[name].shape != self._source.infos[name].shape
        return super().ranges(name) if is_padded else self._source.ranges(name)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The source and the filler."""
        return (self._source,) if self._filler is None else (self._source, self._filler)


class MeanSource(WeightSource):
    """The mean of the models that have an element; the filler of models with fewer tokens."""

    def __init__(
        self, models: Sequence[WeightSource], rows: Mapping[str, int], base: WeightSource
    ) -> None:
        self._models = models
        self.infos = {name: resize(base.infos[name], count) for name, count in rows.items()}

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Average, from one model's end to the next one's."""
        sizes = {model.infos[name].numel for model in self._models if name in model.infos}
        ends = sorted({stop, *(size for size in sizes if start < size < stop)})
        spans = zip([start, *ends], ends, strict=False)
        return torch.cat([self._mean(name, *span) for span in spans])

    def _mean(self, name: str, start: int, stop: int) -> torch.Tensor:
        parts = [
            read_range(model, name, start, stop)
            for model in self._models
            if name in model.infos and model.infos[name].numel >= stop
        ]
        has_fp64 = any(part.dtype is torch.float64 for part in parts)
        total = parts[0].to(torch.float64 if has_fp64 else torch.float32, copy=True)
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
