"""Which tokens all models are brought to: chosen by the options, from the files beside them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.weights import same_tensors, tokenizer_of
from pools_lm.config import UNION
from pools_lm.rows import OwnRows
from pools_lm.tokens import Model, Tokens
from pools_lm.vocabularies import Vocabulary, identity, read_vocabulary
from pools_lm.written import has_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core import WeightSource
    from fusion_core.weights import Files
    from pools_lm.architecture import Architecture
    from pools_lm.config import LanguageConfig


@dataclass(frozen=True)
class Choosing:
    """A pool's models, by name and the base or first expert first, and the files beside them."""

    sources: Mapping[str, WeightSource]
    files: Mapping[str, Files]
    config: LanguageConfig

    def check(self) -> None:
        """Raise `RecipeError` if the tokenizer that is chosen is not there."""
        chosen, experts = self.config.tokenizer, [name for name in self.sources if name != "base"]
        if chosen in {"base", UNION}:
            return
        if chosen not in experts:
            raise RecipeError(
                f"model_pool.tokenizer: no expert is called {chosen!r}",
                hint=f"Choose base, union, or one of: {', '.join(experts)}.",
            )
        if not has_tokenizer(self.files[chosen]):
            raise RecipeError(
                f"model_pool.tokenizer: {chosen} has no tokenizer beside its weights",
                hint="Choose a model that has one, or copy its tokenizer there.",
            )

    @property
    def is_settled(self) -> bool:
        """Whether all models have one tokenizer and one shape already; nothing is parsed."""
        first, *others = self.sources.values()
        return self.config.pad_to_multiple_of is None and (
            not self._kinds
            or (
                len(set(self._kinds.values())) == 1
                and all(_same_shapes(first, other) for other in others)
            )
        )

    def tokens(self, own: Architecture) -> Tokens:
        """Read the tokenizers, and say what every row is to mean.

        Raises `CheckpointError` for a tokenizer that cannot be read, or tensors that cannot be told
        to be of tokens.
        """
        vocabularies = self._vocabularies()
        models = [
            Model(name, self._rows_of(source, own), vocabularies[name])
            for name, source in self.sources.items()
        ]
        return Tokens.of(models, "base" if "base" in self.sources else None, self.config)

    @cached_property
    def _kinds(self) -> dict[str, str]:
        found = {name: each for name, each in self.files.items() if has_tokenizer(each)}
        return {name: identity(tokenizer_of(each)) for name, each in found.items()}

    def _vocabularies(self) -> dict[str, Vocabulary]:
        """Read each model's tokenizer; one that has none knows what the first with one knows."""
        kinds = self._kinds
        if not kinds:
            raise RecipeError(
                "model_pool.pad_to_multiple_of: no model has a tokenizer, which says what rows are",
                hint="Leave it out, or copy a tokenizer beside the base's weights.",
            )
        read = {kind: read_vocabulary(self.files[name], name) for name, kind in kinds.items()}
        first = next(iter(kinds.values()))
        return {name: read[kinds.get(name, first)] for name in self.sources}

    def _rows_of(self, source: WeightSource, own: Architecture) -> OwnRows:
        """Say which rows a model has."""
        axes, every = own.vocabulary, own.named(source).names
        names = {here: there for here, there in every.items() if here in axes}
        lost = own.vocabulary.keys() - {
            here for here in own.vocabulary for twin in names if own.tied[here] == own.tied[twin]
        }
        if lost:
            raise CheckpointError(
                f"{source.describe()}: no tensor is known to be {min(lost)!r}, whose rows are to "
                "be brought to other tokens",
                hint="Load it with transformers and save it anew.",
            )
        counted = {source.infos[there].shape[axes[here]] for here, there in names.items()}
        if source.is_delta:
            counted.add(self._rows_of(next(iter(self.sources.values())), own).count)
        if len(counted) != 1:
            raise CheckpointError(
                f"{source.describe()}: its embeddings and heads, or an adapter's and its base's, "
                f"have different numbers of rows: {sorted(counted)}",
                hint="Merge an adapter into its base with PEFT (merge_and_unload), and name the "
                "result.",
            )
        return OwnRows(source, names, counted.pop())


def _same_shapes(one: WeightSource, other: WeightSource) -> bool:
    names = same_tensors(one.infos, other.infos)
    return all(one.infos[here].shape == other.infos[there].shape for here, there in names.items())
