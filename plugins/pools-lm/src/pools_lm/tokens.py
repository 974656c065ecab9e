"""Models of different tokenizers, brought to one: the same row means the same token in all.

A row is the model's own where it knows the token, else the base's: so it changes nothing. What the
base does not know either is new, and comes by the policy `new_rows`. A row that no token has is
that of the model whose tokenizer is chosen, in every model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from fusion_core.weights import as_weights
from pools_lm.config import UNION
from pools_lm.rows import Layer, MeanRows, OwnRows, PieceRows, TokenSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from fusion_core.weights import Files, WeightSource
    from pools_lm.config import LanguageConfig
    from pools_lm.vocabularies import Vocabulary


@dataclass(frozen=True)
class Model:
    """A model, the rows that it has, and the tokens that it knows."""

    name: str
    own: OwnRows
    vocabulary: Vocabulary

    def index(self, tokens: Mapping[str, int], count: int) -> Tensor:
        """Return which of the model's rows each of `count` rows is; -1 for none."""
        index = torch.full((count,), -1)
        known = self.vocabulary.numbers
        found = {row: known[token] for token, row in tokens.items() if token in known}
        own = {row: number for row, number in found.items() if number < self.own.count}
        index[torch.tensor([*own.keys()], dtype=torch.long)] = torch.tensor([*own.values()])
        return index


@dataclass(frozen=True)
class Tokens:
    """The tokens that all models are brought to, and the number of rows of each."""

    models: Sequence[Model]
    chosen: Model
    numbers: Mapping[str, int]
    count: int
    #: the base's name, if there is a base
    base: str | None
    new_rows: str

    @classmethod
    def of(cls, models: Sequence[Model], base: str | None, config: LanguageConfig) -> Tokens:
        """Choose as the options say; `models` begin with the base, or the first expert."""
        named = {model.name: model for model in models}
        chosen = named.get(config.tokenizer, models[0])
        numbers = dict(chosen.vocabulary.numbers)
        if config.tokenizer == UNION:
            _extend(numbers, models)
        step = config.pad_to_multiple_of or 1
        needed = max(chosen.own.count, max(numbers.values()) + 1)
        return cls(models, chosen, numbers, -(-needed // step) * step, base, config.new_rows)

    @property
    def changes(self) -> bool:
        """Whether any model has other rows than these."""
        return any(
            model.own.count != self.count or model.vocabulary.numbers != self.numbers
            for model in self.models
        )

    @property
    def added(self) -> dict[str, int]:
        """The tokens that the chosen tokenizer lacks, by their numbers."""
        known = self.chosen.vocabulary.numbers
        return {token: number for token, number in self.numbers.items() if token not in known}

    def sources(self, axes: Mapping[str, int]) -> dict[str, WeightSource]:
        """Return every model with these rows; `axes` are the tokens' dimensions of tensors."""
        return {
            model.name: TokenSource(model.own, axes, self.count, list(self._layers(model)))
            for model in self._models
        }

    def said(self) -> Iterator[str]:
        """Say what is done to the models whose tokens are others."""
        for model in self.models:
            index, known = self._index[model.name], model.vocabulary.numbers
            moved = int(((index >= 0) & (index != torch.arange(self.count))).sum())
            counts = {
                "at other numbers": moved,
                "left out": len(known.keys() - self.numbers.keys()),
                "that it does not know": len(self.numbers.keys() - known.keys()),
            }
            found = [f"{count} {what}" for what, count in counts.items() if count]
            if found:
                yield f"tokenizer {model.name}: tokens {', '.join(found)}"

    @cached_property
    def _index(self) -> dict[str, Tensor]:
        return {model.name: model.index(self.numbers, self.count) for model in self.models}

    @cached_property
    def _models(self) -> list[Model]:
        """The models; an adapter is a whole one where it knows tokens that its base does not."""
        whole = {model.name: model.own.source for model in self.models}
        if self.base is None:
            return list(self.models)
        base = whole[self.base]
        return [
            replace(model, own=replace(model.own, source=as_weights(model.own.source, base)))
            if model.own.source.is_delta and not self._has_its_tokens(model)
            else model
            for model in self.models
        ]

    def _has_its_tokens(self, model: Model) -> bool:
        own, base = self._index[model.name], self._index[self.base or model.name]
        return bool(((own < 0) | (own == base)).all())

    def _layers(self, model: Model) -> Iterator[Layer]:
        if model.own.source.is_delta:  # what it lacks differs by nothing
            yield Layer(model.own, self._index[model.name])
            return
        named = {each.name: each for each in self._models}
        yield Layer(self._filler(named).own, self._unused)
        yield Layer(model.own, self._index[model.name])
        if self.base is not None and model.name != self.base:
            yield Layer(named[self.base].own, self._index[self.base])
        if self.new_rows == "expert":
            yield self._mean
        elif self.new_rows == "subwords":
            yield self._pieces(model)

    def _filler(self, named: Mapping[str, Model]) -> Model:
        """Return the model that rows without a token are from: an adapter's are its base's."""
        own = named[self.chosen.name]
        return named[self.base] if own.own.source.is_delta and self.base else own

    @cached_property
    def _unused(self) -> Tensor:
        index = torch.arange(self.count)
        index[self.chosen.own.count :] = -1
        index[torch.tensor(list(self.numbers.values()))] = -1
        return index

    @cached_property
    def _mean(self) -> Layer:
        models = [model for model in self._models if not model.own.source.is_delta]
        found = [(model.own, self._index[model.name]) for model in models]
        known = torch.stack([index >= 0 for _, index in found]).any(dim=0)
        return Layer(MeanRows(found), torch.arange(self.count).where(known, -1))

    def _pieces(self, model: Model) -> Layer:
        """Cut the tokens that neither the model nor the base knows."""
        index = self._index[model.name]
        lacking = index < 0 if self.base is None else (index < 0) & (self._index[self.base] < 0)
        tokens = {row: token for token, row in self.numbers.items() if lacking[row]}
        found = dict(zip(tokens, self._cut(list(tokens.values()), model), strict=True))
        cut = [found.get(row, []) for row in range(self.count)]
        begins = torch.tensor([0, *accumulate(map(len, cut))])
        pieces = torch.tensor([piece for each in cut for piece in each], dtype=torch.long)
        known = begins.diff() > 0
        rows = PieceRows(model.own, pieces, begins)
        return Layer(rows, torch.arange(self.count).where(known, -1))

    def _cut(self, tokens: Sequence[str], model: Model) -> list[list[int]]:
        """Return the pieces that a model's tokenizer cuts tokens of others into."""
        texts: dict[str, str | None] = {}
        for other in self.models:
            own = [t for t in tokens if t not in texts and t in other.vocabulary.numbers]
            texts |= zip(own, other.vocabulary.texts_of(own), strict=True)
        known = [text for token in tokens if (text := texts[token]) is not None]
        pieces = iter(model.vocabulary.pieces(known))
        cut = [[] if texts[token] is None else next(pieces) for token in tokens]
        return [[piece for piece in found if piece < model.own.count] for found in cut]


@dataclass(frozen=True)
class Brought:
    """What is left to know of models once their rows are brought to one tokenizer."""

    #: that tokenizer's
    files: Files
    #: how many rows the base, or the first expert, had, and how many all have
    before: int
    count: int
    #: what it came to, in words
    said: Sequence[str]


def _extend(numbers: dict[str, int], models: Sequence[Model]) -> None:
    """Add the tokens of other models, numbered behind the first one's in their order."""
    free = max(numbers.values()) + 1
    for model in models:
        known = model.vocabulary.numbers
        for token in sorted(known, key=known.__getitem__):
            if token not in numbers and known[token] < model.own.count:
                numbers[token], free = free, free + 1
