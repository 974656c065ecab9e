"""Choose the tokens that all models get, from the options and the models' tokenizer files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.weights import match_names
from pools_checkpoints import select_tokenizer_files
from pools_lm.config import UNION
from pools_lm.rows import ModelRows
from pools_lm.target_tokens import Model, TargetTokens
from pools_lm.tokenizer_files import has_tokenizer
from pools_lm.vocabularies import Vocabulary, digest_token_ids, read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core import WeightSource
    from fusion_core.weights import Files
    from pools_lm.architecture import Architecture
    from pools_lm.config import LanguageConfig


@dataclass(frozen=True)
class TokenizerChoice:
    """A pool's models and their side files by name; the base or first expert comes first."""

    sources: Mapping[str, WeightSource]
    files: Mapping[str, Files]
    config: LanguageConfig

    def check(self) -> None:
        """Raise `RecipeError` if the chosen tokenizer is missing."""
        chosen, experts = self.config.tokenizer, [name for name in self.sources if name != "base"]
        if chosen in {"base", UNION}:
            return
        if chosen not in experts:
            raise RecipeError(
                f"model_pool.tokenizer: unknown expert {chosen!r}",
                hint=f"Choose base, union, or one of: {', '.join(experts)}.",
            )
        if not has_tokenizer(self.files[chosen]):
            raise RecipeError(
                f"model_pool.tokenizer: missing tokenizer of {chosen}",
                hint="Choose a model that has one, or copy a tokenizer next to its weights.",
            )

    @property
    def is_uniform(self) -> bool:
        """Whether all models share one tokenizer and the same shapes. Parses no tokenizer."""
        if self.config.pad_to_multiple_of is not None or self.config.tokens:
            return False
        if not self._digests:
            return True
        first, *others = self.sources.values()
        return len(set(self._digests.values())) == 1 and all(
            first.infos[name].shape == other.infos[twin].shape
            for other in others
            for name, twin in match_names(first.infos, other.infos).items()
        )

    def resolve(self, architecture: Architecture) -> TargetTokens:
        """Read the tokenizers and choose the meaning of every row.

        Raises `CheckpointError` for an unreadable tokenizer, and for a model whose token tensors
        cannot be identified.
        """
        vocabularies = self._read_vocabularies()
        models = [
            Model(name, self._find_rows(source, architecture), vocabularies[name])
            for name, source in self.sources.items()
        ]
        return TargetTokens.of(models, "base" if "base" in self.sources else None, self.config)

    @cached_property
    def _digests(self) -> dict[str, str]:
        """A digest of the token ids of each model that has a tokenizer."""
        return {
            name: digest_token_ids(select_tokenizer_files(files))
            for name, files in self.files.items()
            if has_tokenizer(files)
        }

    def _read_vocabularies(self) -> dict[str, Vocabulary]:
        """Read each model's tokenizer. A model without one uses the first one."""
        digests = self._digests
        if not digests:
            raise RecipeError(
                "model_pool: no model has a tokenizer, which tokens and pad_to_multiple_of need",
                hint="Remove the options, or copy a tokenizer next to the base's weights.",
            )
        by_digest = {
            digest: read_vocabulary(self.files[name], name) for name, digest in digests.items()
        }
        first = next(iter(digests.values()))
        return {name: by_digest[digests.get(name, first)] for name in self.sources}

    def _find_rows(self, source: WeightSource, architecture: Architecture) -> ModelRows:
        axes, tied = architecture.vocabulary_axes, architecture.tied
        names = {
            live: stored
            for live, stored in architecture.rename_to_live(source).names.items()
            if live in axes
        }
        stored_tensors = {tied[name] for name in names}
        lost = [name for name in axes if tied[name] not in stored_tensors]
        if lost:
            raise CheckpointError(
                f"{source.describe()}: no tensor matches {min(lost)!r}, whose rows need the "
                "shared tokens",
                hint="If this model ties its head to its embeddings and others do not, save it "
                "with a copy of the embeddings as head, and tie_word_embeddings: false. Otherwise "
                "load it with transformers and save it again.",
            )
        counts = {source.infos[stored].shape[axes[live]] for live, stored in names.items()}
        if source.is_delta:
            base = next(iter(self.sources.values()))
            counts.add(self._find_rows(base, architecture).count)
        if len(counts) != 1:
            raise CheckpointError(
                f"{source.describe()}: embeddings and heads, or an adapter and its base, differ in "
                f"their number of rows: {sorted(counts)}",
                hint="Merge an adapter into its base with PEFT (merge_and_unload), and name the "
                "result.",
            )
        return ModelRows(source, names, counts.pop())
