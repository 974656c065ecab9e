"""The pools of language models: checkpoints whose class transformers finds by their head."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from fusion_core import CheckpointsPool, WeightSource, build_model
from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.weights import as_weights, safe_config, same_tensors, tokenizer_of
from pools_lm.beside import OF_ENCODERS, has_chat_template, left_out, with_own_modules
from pools_lm.config import UNION, LanguageConfig
from pools_lm.written import has_tokenizer, with_rows, with_tokenizer, with_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from fusion_core import AlignmentPolicy
    from fusion_core.weights import Files
    from pools_lm.architecture import Architecture
    from pools_lm.rows import OwnRows
    from pools_lm.tokens import Tokens
    from pools_lm.vocabularies import Vocabulary


class LanguagePool(CheckpointsPool):
    """Models that an Auto class of transformers knows: directories, hub ids, LoRA adapters."""

    config_class: ClassVar[Any] = LanguageConfig
    #: the class of transformers that finds a model's own
    auto: ClassVar[str]
    config: LanguageConfig
    #: what rows mean in all models; None where every row does in all of them already
    _tokens: Tokens | None = None

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__(config)
        self._check_choice()
        tokens = None if self._are_alike() else self._by_token()
        if tokens is not None and tokens.changes:
            sources = tokens.sources(self._architecture.vocabulary)
            self.base = sources.get("base", self.base)
            self.experts = {name: sources[name] for name in self.experts}
            self._tokens = tokens

    def build(
        self,
        weights: WeightSource,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
    ) -> nn.Module:
        """Return a live model of transformers with these weights.

        Raises `CheckpointError` without a configuration that transformers knows, `AlignmentError`
        for weights that do not fit it.
        """
        own = self._architecture
        named = own.named(as_weights(weights, self.base))
        return build_model(own.construct, named, dtype=dtype, device=device)

    def check_builds(self) -> None:
        """Raise `CheckpointError` if transformers makes no model of the configuration."""
        _ = self._architecture.tensors

    def parameters(self, module: nn.Module) -> Mapping[str, nn.Parameter]:
        """Map the sources' names to the live parameters; tied ones go by what is stored."""
        live = dict(module.named_parameters(remove_duplicate=False))
        names = self._architecture.named(self.reference).names
        return {name: live[here] for here, name in names.items() if here in live}

    def aligned(self, policy: AlignmentPolicy) -> Self:
        """Return this pool with models that fit, and say what lies beside the base in vain."""
        clone = super().aligned(policy)
        clone.warnings = (*clone.warnings, *self._said())
        return clone

    def assets(self, *, dtype: torch.dtype | None = None) -> Files:
        """Return the files beside the base's weights, with the tokenizer that is chosen."""
        found = super().assets(dtype=dtype)
        if self.config.tokenizer in self.experts:
            found = with_tokenizer(found, self.files_of(self.config.tokenizer))
        if self._tokens is None:
            return found
        others = {name: each for name, each in found.items() if name not in tokenizer_of(found)}
        before = self._tokens.models[0].own.count
        return {**with_rows(others, before, self._tokens.count), **self._tokenizer}

    def beside(self) -> Mapping[str, Files]:
        """Return what lies beside each model; where rows mean the same, with one tokenizer."""
        found = super().beside()
        if self._tokens is None:
            return found
        return {
            name: {
                **{n: f for n, f in files.items() if n not in tokenizer_of(files)},
                **self._tokenizer,
            }
            for name, files in found.items()
        }

    @cached_property
    def _tokenizer(self) -> Files:
        """The files of the tokenizer that all models are brought to."""
        assert self._tokens is not None  # noqa: S101 - asked for then only
        own = tokenizer_of(self.files_of(self._tokens.chosen.name))
        return with_tokens(own, self._tokens)

    def _check_choice(self) -> None:
        """Raise `RecipeError` if the tokenizer that is chosen is not there."""
        chosen = self.config.tokenizer
        if chosen in {"base", UNION}:
            return
        if chosen not in self.experts:
            raise RecipeError(
                f"model_pool.tokenizer: no expert is called {chosen!r}",
                hint=f"Choose base, union, or one of: {', '.join(self.experts)}.",
            )
        if not has_tokenizer(self.files_of(chosen)):
            raise RecipeError(
                f"model_pool.tokenizer: {chosen} has no tokenizer beside its weights",
                hint="Choose a model that has one, or copy its tokenizer there.",
            )

    def _are_alike(self) -> bool:
        """Tell whether models have the same tokenizer and shapes, without parsing anything."""
        from pools_lm.vocabularies import identity  # tokenizers

        files = [tokenizer_of(self.files_of(name)) for name in self.by_name]
        kinds = {identity(each) for each in files if has_tokenizer(each)}
        same = (_same_shapes(self.reference, each) for each in self.experts.values())
        return self.config.pad_to_multiple_of is None and (
            not kinds or (len(kinds) == 1 and all(same))
        )

    def _by_token(self) -> Tokens:
        """Read the tokenizers, and say what every row is to mean."""
        from pools_lm.tokens import Model, Tokens  # tokenizers

        if any(isinstance(each.live, WeightSource) for each in self._all):
            raise RecipeError(
                "the models have different tokenizers, and one is what another recipe merges",
                hint="Merge that first (fuse run), and name the directory.",
            )
        vocabularies = self._vocabularies()
        models = [
            Model(name, self._rows_of(self._with_same_copies(source)), vocabularies[name])
            for name, source in self.by_name.items()
        ]
        base = None if self.base is None else "base"
        return Tokens.of(models, base, self.config)

    def _vocabularies(self) -> dict[str, Vocabulary]:
        """Read each model's tokenizer; one that has none knows what the first with one knows."""
        from pools_lm.vocabularies import identity, read_vocabulary

        files = {name: self.files_of(name) for name in self.by_name}
        kinds = {
            name: identity(tokenizer_of(each))
            for name, each in files.items()
            if has_tokenizer(each)
        }
        read = {kind: read_vocabulary(files[name], name) for name, kind in kinds.items()}
        first = next(iter(kinds.values()), None)
        if first is None:
            raise RecipeError(
                "model_pool.pad_to_multiple_of: no model has a tokenizer that says which rows are "
                "tokens",
                hint="Leave it out, or copy a tokenizer beside the base's weights.",
            )
        return {name: read[kinds.get(name, first)] for name in files}

    def _rows_of(self, source: WeightSource) -> OwnRows:
        """Say which rows a model has; raises `CheckpointError` where it cannot be told."""
        from pools_lm.rows import OwnRows

        axes, names = self._architecture.vocabulary, self._token_names(source)
        counted = {source.infos[there].shape[axes[here]] for here, there in names.items()}
        if source.is_delta:
            counted.add(self._rows_of(self.reference).count)
        if len(counted) != 1:
            raise CheckpointError(
                f"{source.describe()}: its embeddings and heads, or an adapter's and its base's, "
                f"have different numbers of rows: {sorted(counted)}",
                hint="Merge an adapter into its base with PEFT (merge_and_unload), and name the "
                "result.",
            )
        return OwnRows(source, names, counted.pop())

    def _with_same_copies(self, source: WeightSource) -> WeightSource:
        from pools_lm.ties import with_same_copies

        names, wanted = self._token_names(source), self._token_names(self.reference)
        return with_same_copies(source, names, self.reference, wanted, self._architecture.tied)

    def _token_names(self, source: WeightSource) -> dict[str, str]:
        """Return the names of a model's tensors of tokens, by those of the live model."""
        axes, every = self._architecture.vocabulary, self._architecture.named(source).names
        return {here: there for here, there in every.items() if here in axes}

    @property
    def _architecture(self) -> Architecture:
        from pools_lm.architecture import architecture  # transformers: seconds

        fields = safe_config({**self.beside()[self._first], **self.assets()}, self._first)
        if fields is None:
            raise CheckpointError(
                f"{self.reference.describe()} has no config.json beside it",
                hint="Name the directory that save_pretrained wrote; 'checkpoints' merges any.",
            )
        return architecture(self.auto, json.dumps(fields))

    @property
    def _first(self) -> str:
        return next(iter(self.by_name))

    def _said(self) -> Iterator[str]:
        """Say what an output will not have that the base, or an expert, has."""
        yield from () if self._tokens is None else self._tokens.said()
        first, taken = self._all[0], self.assets()
        if first.location is None or not taken:
            return
        if lost := left_out(first.location.names(), taken):
            yield f"beside {first.name}, and not copied (code never is): {', '.join(lost)}"
        if not tokenizer_of(taken):
            yield f"{first.name} has no tokenizer, and so the output has none"
        if not has_chat_template(taken):
            for name in self.experts:
                if has_chat_template(self.files_of(name)):
                    yield f"{name} has a chat template; {first.name}, and so the output, has none"


def _same_shapes(one: WeightSource, other: WeightSource) -> bool:
    names = same_tensors(one.infos, other.infos)
    return all(one.infos[here].shape == other.infos[there].shape for here, there in names.items())


class CausalPool(LanguagePool):
    """Models that go on with a text."""

    auto = "AutoModelForCausalLM"


class Seq2SeqPool(LanguagePool):
    """Models that answer a text with another."""

    auto = "AutoModelForSeq2SeqLM"


class ClassificationPool(LanguagePool):
    """Models that put a text into a class."""

    auto = "AutoModelForSequenceClassification"


class EncoderPool(LanguagePool):
    """Encoders of texts; of a SentenceTransformer, its other modules are the base's."""

    auto = "AutoModel"
    more_files = OF_ENCODERS

    def assets(self, *, dtype: torch.dtype | None = None) -> Files:
        """Return an encoder's files, those of its modules included."""
        return with_own_modules(super().assets(dtype=dtype))
