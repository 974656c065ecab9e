"""The pools of language models: checkpoints whose class transformers finds by their head."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from fusion_core import CheckpointsPool, build_model
from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.weights import RenamedSource, as_weights, safe_config, same_tensors, tokenizer_of
from pools_lm.beside import OF_ENCODERS, left_out, with_own_modules
from pools_lm.config import LanguageConfig
from pools_lm.packing import Packing
from pools_lm.tokens import Brought
from pools_lm.written import with_rows, with_tokenizer, with_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from fusion_core import AlignmentPolicy, WeightSource
    from fusion_core.weights import Files, Matrices
    from pools_lm.architecture import Architecture
    from pools_lm.tokens import Tokens


class LanguagePool(CheckpointsPool):
    """Models that an Auto class of transformers knows: directories, hub ids, LoRA adapters.

    A pool that brings its own models passes a `LanguageConfig` to this constructor and then sets
    `config` to its own options, which are what a recipe records.
    """

    config_class: ClassVar[Any] = LanguageConfig
    #: the class of transformers that finds a model's own
    auto: ClassVar[str]
    config: Any
    #: None where every row means the same in all models already
    _brought: Brought | None = None

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__(config)
        self._options = config
        self._spell()
        tokens = self._settled()
        if tokens is not None:
            self._bring(tokens)

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
        own, named = self._architecture, self._named(as_weights(weights, self.base))
        return build_model(own.construct, named, dtype=dtype, device=device)

    def check_builds(self) -> None:
        """Raise `CheckpointError` if transformers makes no model of the configuration and weights.

        Compared are names and shapes, on the meta device: some versions pack what files hold apart,
        the experts of a mixture above all.
        """
        own = self._architecture.checked
        if (problem := own.misfit(self._named(self.reference))) is not None:
            raise CheckpointError(
                f"transformers {own.version} makes a {own.kind} with other tensors than those of "
                f"{self.reference.describe()}, so no merge can be evaluated: {problem}",
                hint="Merging alone works: add --no-eval, and measure the output by other means.",
            )

    def parameters(self, module: nn.Module) -> Mapping[str, nn.Parameter]:
        """Map the sources' names to the live parameters; tied ones go by what is stored."""
        live = dict(module.named_parameters(remove_duplicate=False))
        names = self._architecture.named(self.reference).names
        return {name: live[here] for here, name in names.items() if here in live}

    def matrices(self, name: str, shape: tuple[int, ...]) -> Matrices:
        """Say which matrices a tensor holds, as the models' configuration has it."""
        declared = self._packing and self._packing.matrices(name, shape)
        return declared or super().matrices(name, shape)

    def aligned(self, policy: AlignmentPolicy) -> Self:
        """Return this pool with models that fit, and say what lies beside the base in vain."""
        clone = super().aligned(policy)
        clone.warnings = (*clone.warnings, *self._said())
        return clone

    def assets(self, *, dtype: torch.dtype | None = None) -> Files:
        """Return the files beside the base's weights, with the tokenizer that is chosen."""
        found = super().assets(dtype=dtype)
        if self._options.tokenizer in self.experts:
            found = with_tokenizer(found, self.files_of(self._options.tokenizer))
        if self._brought is None:
            return found
        others = {name: each for name, each in found.items() if name not in tokenizer_of(found)}
        rows = with_rows(others, self._brought.before, self._brought.count)
        return {**rows, **self._brought.files}

    def beside(self) -> Mapping[str, Files]:
        """Return what lies beside each model; where rows mean the same, with one tokenizer."""
        found = super().beside()
        if self._brought is None:
            return self._with_chosen(found)
        return {
            name: {
                **{n: f for n, f in files.items() if n not in tokenizer_of(files)},
                **self._brought.files,
            }
            for name, files in found.items()
        }

    def _with_chosen(self, found: Mapping[str, Files]) -> Mapping[str, Files]:
        """Put the tokenizer that is chosen beside the first model: the output has that one."""
        chosen = self._options.tokenizer
        if chosen not in self.experts:
            return found
        return {**found, self._first: with_tokenizer(found[self._first], found[chosen])}

    def _named(self, weights: WeightSource) -> RenamedSource:
        """Return weights by the live model's names."""
        return self._architecture.named(weights)

    def _bring(self, tokens: Tokens) -> None:
        """Bring all models to some tokens; what was read of tokenizers is not kept."""
        own = tokenizer_of(self.files_of(tokens.chosen.name))
        before = tokens.models[0].own.count
        said = tuple(tokens.said())
        self._brought = Brought(with_tokens(own, tokens), before, tokens.count, said)
        sources = tokens.sources(self._architecture.vocabulary)
        self.base = sources.get("base", self.base)
        self.experts = {name: sources[name] for name in self.experts}

    def _settled(self) -> Tokens | None:
        """Return the tokens that all models are brought to; None where they have them already."""
        from pools_lm.choosing import Choosing  # tokenizers

        files = {name: self.files_of(name) for name in self.by_name}
        choosing = Choosing(self.by_name, files, self._options)
        choosing.check()
        if choosing.is_settled:
            return None
        if self._has_recipes:
            raise RecipeError(
                "the models have different tokenizers, and one is what another recipe merges",
                hint="Merge that first (fuse run), and name the directory.",
            )
        tokens = choosing.tokens(self._architecture)
        return tokens if tokens.changes else None

    def _spell(self) -> None:
        """Give models the same names, where transformers knows what differs to be alike."""
        first = self.reference
        others = [expert for expert in self.experts.values() if expert is not first]
        if self._has_recipes or all(_is_spelled_as(other, first) for other in others):
            return
        try:
            own = self._architecture.checked
        except CheckpointError:  # merged by the names that there are
            return
        from pools_lm.spelled import spelled_as, trimmed

        spelled = {
            name: each if _is_spelled_as(each, first) else spelled_as(each, first, own)
            for name, each in self.experts.items()
        }
        self.experts = {name: trimmed(each, own) for name, each in spelled.items()}
        self.base = None if self.base is None else trimmed(self.base, own)

    @property
    def _has_recipes(self) -> bool:
        """Whether a model is what another recipe merges, which is put in its place later."""
        return any(hasattr(each.live, "recipe_in") for each in self._all)

    @cached_property
    def _packing(self) -> Packing | None:
        return Packing.of(self._configuration or {})

    @property
    def _configuration(self) -> Mapping[str, Any] | None:
        return safe_config({**self.beside()[self._first], **self.assets()}, self._first)

    @property
    def _architecture(self) -> Architecture:
        from pools_lm.architecture import architecture  # transformers: seconds

        fields = self._configuration
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
        yield from () if self._brought is None else self._brought.said
        first, taken = self._all[0], self.assets()
        if first.location is None or not taken:
            return
        if lost := left_out(first.location.names(), taken):
            yield f"beside {first.name}, and not copied (code never is): {', '.join(lost)}"
        if not any(map(tokenizer_of, (taken, *map(self.files_of, self.experts)))):
            yield f"{first.name} has no tokenizer, and so the output has none"


def _is_spelled_as(source: WeightSource, first: WeightSource) -> bool:
    """Tell whether a model has the first one's names, but for a prefix, as differences do."""
    known = len(same_tensors(first.infos, source.infos))
    return known == len(first.infos) == len(source.infos) or source.is_delta


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

    def _named(self, weights: WeightSource) -> RenamedSource:
        """Return an encoder's weights without heads, which transformers leaves out, too."""
        own, names = self._architecture, super()._named(weights).names
        heads = {name for name in names.keys() - own.tensors.keys() if own.has_in_head(name)}
        return RenamedSource(weights, {n: each for n, each in names.items() if n not in heads})
