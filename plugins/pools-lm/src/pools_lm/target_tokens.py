"""The target tokens of a merge: models with different tokenizers get the same rows.

A row is the model's own if it knows the token, otherwise the base's, so that its task vector is
zero there. A token that the base does not know either is new; the option `new_rows` fills it. The
option `tokens` fills the rows of single tokens, before the base's and perhaps before the model's
own. A row without a token comes from the model whose tokenizer is chosen, in every model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from fusion_core.errors import RecipeError
from fusion_core.weights import as_weights
from pools_lm.config import UNION
from pools_lm.rows import Layer, MeanRows, ModelRows, PieceRows, TokenSource, ZeroRows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from fusion_core.weights import Files, WeightSource
    from pools_lm.config import LanguageConfig
    from pools_lm.vocabularies import Vocabulary


@dataclass(frozen=True)
class Model:
    """A model with its rows and its vocabulary."""

    name: str
    rows: ModelRows
    vocabulary: Vocabulary

    @property
    def is_delta(self) -> bool:
        """Whether the model is an adapter."""
        return self.rows.source.is_delta

    def index(self, ids: Mapping[str, int], count: int) -> Tensor:
        """Return the model's row for each of `count` target rows; -1 if it has none."""
        index = torch.full((count,), -1)
        known = self.vocabulary.ids
        pairs = {
            row: known[token]
            for token, row in ids.items()
            if token in known and known[token] < self.rows.count
        }
        index[torch.tensor([*pairs.keys()], dtype=torch.long)] = torch.tensor([*pairs.values()])
        return index


@dataclass(frozen=True)
class TargetTokens:
    """The token ids and the row count that all models get."""

    models: Sequence[Model]
    #: the model whose tokenizer is chosen
    chosen: Model
    ids: Mapping[str, int]
    count: int
    #: the base's name; None without a base
    base: str | None
    config: LanguageConfig

    @classmethod
    def of(cls, models: Sequence[Model], base: str | None, config: LanguageConfig) -> TargetTokens:
        """Choose the tokens by the options; `models` begin with the base, or the first expert.

        Raises `RecipeError` for a row of `tokens` that the named model does not have.
        """
        by_name = {model.name: model for model in models}
        chosen = by_name.get(config.tokenizer, models[0])
        ids = dict(chosen.vocabulary.ids)
        if config.tokenizer == UNION:
            _append_tokens(ids, models)
        for token in config.tokens:
            ids.setdefault(token, max(ids.values()) + 1)
        step = config.pad_to_multiple_of or 1
        needed = max(chosen.rows.count, max(ids.values()) + 1)
        count = -(-needed // step) * step
        target = cls(models, chosen, ids, count, base, config)
        for token in config.tokens:
            target.locate_row(token)
        return target

    @property
    def changes_models(self) -> bool:
        """Whether any model has different rows."""
        return bool(self.config.tokens) or any(
            model.rows.count != self.count or model.vocabulary.ids != self.ids
            for model in self.models
        )

    @property
    def added(self) -> dict[str, int]:
        """The ids of the tokens that the chosen tokenizer lacks."""
        known = self.chosen.vocabulary.ids
        return {token: row for token, row in self.ids.items() if token not in known}

    def locate_row(self, token: str) -> tuple[Model | None, int]:
        """Return the model and the number of the row that a token of `tokens` copies.

        The model is None for zeros. Raises `RecipeError` if there is no such row.
        """
        row = self.config.tokens[token]
        if row.model is None:
            return None, 0
        option = f"model_pool.tokens.{token}"
        model = next((model for model in self.models if model.name == row.model), None)
        if model is None:
            names = ", ".join(model.name for model in self.models)
            raise RecipeError(
                f"{option}.model: unknown model {row.model!r}", hint=f"The models: {names}."
            )
        name = token if row.token is None else row.token
        number = model.vocabulary.ids.get(name, -1) if row.id is None else row.id
        if not 0 <= number < model.rows.count:
            missing = f"token {name!r}" if row.id is None else f"row {row.id}"
            raise RecipeError(
                f"{option}: {model.name} has no {missing}",
                hint="Name a token of its tokenizer (token), or a row of its embeddings (id).",
            )
        return model, number

    def sources(self, axes: Mapping[str, int]) -> dict[str, WeightSource]:
        """Return every model with these rows; `axes` gives the token dimension per tensor."""
        reference = self._models[0].rows
        return {
            model.name: TokenSource(
                model.rows, axes, self.count, [*self._layers(model)], reference=reference
            )
            for model in self._models
        }

    def describe_changes(self) -> Iterator[str]:
        """Yield one sentence per model whose tokens change."""
        for model in self.models:
            index, known = self._index[model.name], model.vocabulary.ids
            counts = {
                "renumbered": int(((index >= 0) & (index != torch.arange(self.count))).sum()),
                "left out": len(known.keys() - self.ids.keys()),
                "unknown to it": len(self.ids.keys() - known.keys()),
            }
            changes = [f"{count} {change}" for change, count in counts.items() if count]
            if changes:
                yield f"tokenizer {model.name}: tokens {', '.join(changes)}"

    @cached_property
    def _index(self) -> dict[str, Tensor]:
        return {model.name: model.index(self.ids, self.count) for model in self.models}

    @cached_property
    def _models(self) -> list[Model]:
        """The models. An adapter that knows tokens unknown to its base becomes a full model."""
        if self.base is None:
            return list(self.models)
        base = next(model.rows.source for model in self.models if model.name == self.base)
        models = []
        copied = {row.model for row in self.config.tokens.values()}
        for model in self.models:
            index = self._index[model.name]
            has_base_tokens = ((index < 0) | (index == self._index[self.base])).all()
            if model.is_delta and (model.name in copied or not has_base_tokens):
                source = as_weights(model.rows.source, base)
                models.append(replace(model, rows=replace(model.rows, source=source)))
            else:
                models.append(model)
        return models

    def _layers(self, model: Model) -> Iterator[Layer]:
        known_rows = self._index[model.name].where(~self._forced, -1)
        if model.is_delta:  # rows that an adapter lacks are zero
            yield Layer(model.rows, known_rows)
            return
        by_name = {other.name: other for other in self._models}
        filler = by_name[self.chosen.name]
        if filler.is_delta and self.base:
            filler = by_name[self.base]
        yield Layer(filler.rows, self._unused)
        yield Layer(model.rows, known_rows)
        yield from self._chosen_rows
        if self.base is not None and model.name != self.base:
            yield Layer(by_name[self.base].rows, self._index[self.base])
        if self.config.new_rows == "expert":
            yield self._mean
        elif self.config.new_rows == "subwords":
            yield self._pieces(model)

    @cached_property
    def _unused(self) -> Tensor:
        index = torch.arange(self.count)
        index[self.chosen.rows.count :] = -1
        index[torch.tensor(list(self.ids.values()))] = -1
        return index

    @cached_property
    def _forced(self) -> Tensor:
        """Whether a row is that of `tokens` even if the model knows the token; shape (count,)."""
        forced = torch.zeros(self.count, dtype=torch.bool)
        for token, row in self.config.tokens.items():
            forced[self.ids[token]] = row.force
        return forced

    @cached_property
    def _chosen_rows(self) -> list[Layer]:
        """The rows of `tokens`, one layer per model that they are copied from."""
        rows_by_name = {model.name: model.rows for model in self._models}
        layers: dict[str | None, Layer] = {}
        for token in self.config.tokens:
            model, number = self.locate_row(token)
            name = None if model is None else model.name
            rows = ZeroRows(self.models[0].rows) if name is None else rows_by_name[name]
            layer = layers.setdefault(name, Layer(rows, torch.full((self.count,), -1)))
            layer.index[self.ids[token]] = number
        return [*layers.values()]

    @cached_property
    def _mean(self) -> Layer:
        rows = [
            (model.rows, self._index[model.name]) for model in self._models if not model.is_delta
        ]
        known = torch.stack([index >= 0 for _, index in rows]).any(dim=0)
        return Layer(MeanRows(rows), torch.arange(self.count).where(known, -1))

    def _pieces(self, model: Model) -> Layer:
        """Return rows for tokens unknown to the model and the base, from the model's own pieces."""
        lacking = self._index[model.name] < 0
        if self.base is not None:
            lacking &= self._index[self.base] < 0
        tokens = {row: token for token, row in self.ids.items() if lacking[row]}
        pieces_by_row = dict(zip(tokens, self._split(list(tokens.values()), model), strict=True))
        pieces = [pieces_by_row.get(row, []) for row in range(self.count)]
        offsets = torch.tensor([0, *accumulate(map(len, pieces))])
        flat = torch.tensor([piece for row in pieces for piece in row], dtype=torch.long)
        rows = PieceRows(model.rows, flat, offsets)
        return Layer(rows, torch.arange(self.count).where(offsets.diff() > 0, -1))

    def _split(self, tokens: Sequence[str], model: Model) -> list[list[int]]:
        """Return the pieces that a model's tokenizer splits other models' tokens into."""
        texts: dict[str, str | None] = {}
        for other in self.models:
            known = [t for t in tokens if t not in texts and t in other.vocabulary.ids]
            texts |= zip(known, other.vocabulary.token_texts(known), strict=True)
        complete = [text for token in tokens if (text := texts[token]) is not None]
        pieces = iter(model.vocabulary.tokenize(complete))
        split = [[] if texts[token] is None else next(pieces) for token in tokens]
        return [[piece for piece in row if piece < model.rows.count] for row in split]


@dataclass(frozen=True, kw_only=True)
class TokenizerChange:
    """The tokenizer that all models share after their rows were unified."""

    #: the tokenizer's files
    files: Files
    #: row count of the base, or of the first expert, before the change
    old_rows: int
    #: row count of all models after the change
    rows: int
    #: descriptions of the changes
    warnings: Sequence[str]


def _append_tokens(ids: dict[str, int], models: Sequence[Model]) -> None:
    """Append the tokens of other models to the first model's, in their order."""
    free = max(ids.values()) + 1
    for model in models:
        known = model.vocabulary.ids
        for token in sorted(known, key=known.__getitem__):
            if token not in ids and known[token] < model.rows.count:
                ids[token], free = free, free + 1
