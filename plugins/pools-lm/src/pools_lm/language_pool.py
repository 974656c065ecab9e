"""The pool that every kind of language model extends: names, tokens, side files, live models."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from fusion_core import RecipeSource, build_model
from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.weights import (
    AlignedSource,
    CheckpointSource,
    Layout,
    RenamedSource,
    as_weights,
    match_names,
    parse_config,
    parse_safe_config,
)
from pools_checkpoints import CheckpointsPool, select_tokenizer_files
from pools_lm.chat_templates import choose_template, describe_lost_markers, replace_template
from pools_lm.config import LanguageConfig
from pools_lm.side_files import files_not_copied
from pools_lm.target_tokens import TokenizerChange
from pools_lm.tokenizer_files import (
    CONFIG,
    GENERATION,
    add_tokens,
    describe_new_words,
    replace_tokenizer,
    resize_vocabulary,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from fusion_core import AlignmentPolicy, WeightSource
    from fusion_core.weights import Files
    from pools_lm.architecture import Architecture
    from pools_lm.live_parameters import LiveParameters


class LanguagePool(CheckpointsPool):
    """Models that an Auto class of transformers knows: directories, hub ids, LoRA adapters.

    A pool that brings its own models passes a `LanguageConfig` to this constructor. It then sets
    `config` to its own options, which a recipe records.
    """

    config_class: ClassVar[Any] = LanguageConfig
    builds_any_depth = True  # of weights in a directory, whose configuration states their layers
    #: the Auto class of transformers that selects the model class
    auto: ClassVar[str]
    #: whether a model may contain the others as a part, so that the option `rest` makes sense
    holds_parts: ClassVar[bool] = False
    config: Any
    #: tensors of the first model that transformers ignores, and that the output lacks
    _ignored: tuple[str, ...] = ()
    #: the side files of a model that replace those of the pool's models
    _replaced_assets: Files | None = None
    #: None if each row already means the same token in all models
    _tokenizer_change: TokenizerChange | None = None
    #: the template that the output has instead of its tokenizer's
    _chat_template: str | None = None

    def __init__(self, config: LanguageConfig) -> None:
        if config.rest is not None:
            self._check_rest(config)
        super().__init__(config)
        self._options = config
        if config.chat_template is not None:
            files = {name: self.files_of(name) for name in self.by_name}
            self._chat_template = choose_template(config.chat_template, files)
        if config.rest is None:  # or all models have the names and files of one already
            self._unify_names()
            self._unify_tokens()

    def build(
        self,
        weights: WeightSource,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
    ) -> nn.Module:
        """Return a live transformers model with these weights.

        Weights from a directory may have other tensors than the pool's models, such as more layers
        or a mixture's experts. The model is then the one that the directory's configuration states.
        Raises `CheckpointError` without a configuration that transformers knows, and
        `AlignmentError` for weights that do not fit the configuration.
        """
        architecture = self._architecture_of(weights)
        renamed = self._rename_to_live(as_weights(weights, self.base), architecture)
        packed = architecture.files.fitted(renamed).arrange(renamed)
        return build_model(architecture.construct, packed, dtype=dtype, device=device)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts, after the token that begins a text if there is one.

        The tokenizer runs in a child process. Raises `CheckpointError` if it cannot be read.
        """
        from pools_lm.confined.tokenizer import ConfinedTokenizer
        from pools_lm.tasks.prompts import name_tokenizer_model

        tokenizer = ConfinedTokenizer.of(self.assets(), name_tokenizer_model(self))
        start = [] if tokenizer.facts.bos is None else [tokenizer.facts.bos]
        return [[*start, *tokens] for tokens in tokenizer.encode(texts, special=False)]

    def identity(self) -> Mapping[str, Any] | None:
        """Return the options that live models depend on.

        Other models of the pool do not count, unless weights are read with the rows of another
        model's tokenizer, or have the rest of another model.
        """
        options = super().identity()
        if options is None or self._tokenizer_change is not None or self._options.rest is not None:
            return options
        return {name: value for name, value in options.items() if name not in {"base", "models"}}

    def check_builds(self) -> None:
        """Raise `CheckpointError` if transformers cannot build a model from the checkpoint.

        The check compares names and shapes on the meta device. transformers may fuse tensors that
        files store separately. Only a mixture's experts are fused here, too.
        """
        architecture = self._architecture
        renamed = self._rename_to_live(self.reference, architecture)
        problem = architecture.files.fitted(renamed).find_misfit(renamed)
        if problem is not None:
            raise CheckpointError(
                f"transformers {architecture.version} builds a {architecture.class_name} whose "
                f"tensors differ from those of {self.reference.describe()}, so no merge can be "
                f"evaluated: {problem}",
                hint="Merging alone works: add --no-eval, and evaluate the output with another "
                "tool.",
            )

    def parameters(self, module: nn.Module) -> Mapping[str, nn.Parameter]:
        """Map the sources' names to the live parameters; tied ones use the stored name.

        A parameter that joins several stored tensors has its live name, and a part of a stored
        tensor the name of its matrix. Raises `AlignmentError` for a part that `matrices` does not
        declare: methods could not treat it with the others.
        """
        live, names = dict(module.named_parameters(remove_duplicate=False)), self._live.names
        return {name: live[live_name] for live_name, name in names.items() if live_name in live}

    @property
    def live_layout(self) -> Layout:
        """The positions of matrices in live parameters, as they join and divide tensors."""
        return self._live.layout

    @property
    def _live(self) -> LiveParameters:
        from pools_lm.live_parameters import LiveParameters

        return LiveParameters(self._architecture, self.reference, self.layout, self.matrices)

    def aligned(self, policy: AlignmentPolicy) -> Self:
        """Return this pool with aligned models; warn about side files that are not copied."""
        clone = super().aligned(policy)
        clone.warnings = (*clone.warnings, *self._output_warnings())
        return clone

    def assets(self, *, dtype: torch.dtype | None = None) -> Files:
        """Return the output's side files, with the chosen tokenizer and chat template."""
        if self._replaced_assets is not None:
            return self._replaced_assets
        files = self._choose_tokenizer(super().assets(dtype=dtype))
        template = self._chat_template
        return files if template is None else replace_template(files, template)

    def _choose_tokenizer(self, files: Files) -> Files:
        """Return the output's side files with the chosen tokenizer."""
        if self._options.tokenizer in self.experts:
            files = replace_tokenizer(files, self.files_of(self._options.tokenizer))
        change = self._tokenizer_change
        if change is None:
            return files
        tokenizer = select_tokenizer_files(files)
        others = {name: content for name, content in files.items() if name not in tokenizer}
        return {**resize_vocabulary(others, change.old_rows, change.rows), **change.files}

    def with_assets(self, files: Files) -> Self:
        """Return a copy whose live models have this configuration and tokenizer."""
        clone = copy.copy(self)
        assets = self.assets()
        if select_tokenizer_files(files):
            assets = replace_tokenizer(assets, files)
        clone._replaced_assets = {**assets, **files}  # noqa: SLF001 - of this class
        clone.__dict__.pop("_packing", None)  # the configuration determines it
        return clone

    def side_files(self) -> Mapping[str, Files]:
        """Return each model's side files, with what the output's tokenizer gives all of them."""
        files_by_model = self._share_tokenizer(super().side_files())
        template = self._chat_template
        if template is None:
            return files_by_model
        return {model: replace_template(files, template) for model, files in files_by_model.items()}

    def _share_tokenizer(self, files_by_model: Mapping[str, Files]) -> Mapping[str, Files]:
        """Return each model's side files, with the shared tokenizer where rows were unified."""
        if self._tokenizer_change is not None:
            return {
                model: {
                    **{n: f for n, f in files.items() if n not in select_tokenizer_files(files)},
                    **self._tokenizer_change.files,
                }
                for model, files in files_by_model.items()
            }
        chosen = self._options.tokenizer
        if chosen not in self.experts:
            return files_by_model
        # the output takes its side files from the first model
        first = replace_tokenizer(files_by_model[self._first], files_by_model[chosen])
        return {**files_by_model, self._first: first}

    def _rename_to_live(self, weights: WeightSource, architecture: Architecture) -> RenamedSource:
        """Return weights under the live model's names."""
        return architecture.rename_to_live(weights)

    def _check_rest(self, config: LanguageConfig) -> None:
        """Raise `RecipeError` for parts of models that this pool cannot build or match."""
        if not self.holds_parts:
            raise RecipeError(
                f"model_pool.rest: this pool builds models of {self.auto}, and the option merges "
                "a part of another kind of model",
                hint="Use the pool 'vision-language' for a language model in a vision-language "
                "model, or 'checkpoints', which merges any weights and evaluates none.",
            )
        if config.tokenizer != "base" or config.tokens or config.pad_to_multiple_of is not None:
            raise RecipeError(
                "model_pool.rest: the output has the tokenizer of this model, so tokenizer, tokens "
                "and pad_to_multiple_of conflict with it",
                hint="Leave them out. For models with fewer tokens: --set alignment.vocab=pad",
            )

    def _unify_tokens(self) -> None:
        """Give all models the rows of one tokenizer, unless they share one already."""
        from pools_lm.tokenizer_choice import TokenizerChoice  # imports tokenizers

        files = {name: self.files_of(name) for name in self.by_name}
        choice = TokenizerChoice(self.by_name, files, self._options)
        choice.check()
        if choice.is_uniform:
            return
        if self._has_recipes:
            raise RecipeError(
                "models with different tokenizers cannot include another recipe's merge",
                hint="Run that recipe first (fuse run), and name its output directory.",
            )
        target = choice.resolve(self._architecture)
        if not target.changes_models:
            return
        chosen_files = select_tokenizer_files(self.files_of(target.chosen.name))
        extended = add_tokens(chosen_files, target)
        self._tokenizer_change = TokenizerChange(
            files=extended,
            old_rows=target.models[0].rows.count,
            rows=target.count,
            warnings=(*target.describe_changes(), *describe_new_words(extended, target)),
        )
        sources = target.sources(self._architecture.vocabulary_axes)
        self.base = sources.get("base", self.base)
        self.experts = {name: sources[name] for name in self.experts}

    def _unify_names(self) -> None:
        """Rename tensors to the first model's names where transformers treats both as equal."""
        first = self.reference
        others = [expert for expert in self.experts.values() if expert is not first]
        if self._has_recipes or all(_has_names_of(other, first) for other in others):
            return
        try:
            architecture = self._architecture
            architecture.check()
        except CheckpointError:  # unknown to transformers: merge by the stored names
            return
        from pools_lm.spelling import drop_ignored, rename_like

        renamed = dict(self.experts)
        for name, expert in self.experts.items():
            if _has_names_of(expert, first):
                continue
            if expert.is_delta:
                renamed[name] = self._open_under_live_names(name, first, architecture)
            else:
                renamed[name] = rename_like(expert, first, architecture)
        self.experts = {
            name: drop_ignored(expert, architecture) for name, expert in renamed.items()
        }
        self.base = None if self.base is None else drop_ignored(self.base, architecture)
        dropped = [name for name in first.infos if name not in self.reference.infos]
        self._ignored = tuple(name for name in dropped if not architecture.computes(name))

    def _open_under_live_names(
        self, name: str, base: WeightSource, architecture: Architecture
    ) -> WeightSource:
        """Return an adapter by the names of its base, whose modules may have the live model's."""
        adapter, divided = self.experts[name], architecture.files.divided
        live = architecture.rename_to_live(base)
        joined = {
            tensor: slots
            for tensor, slots in divided.slots_in(live).items()
            if live.infos[tensor].shape == divided.shapes[tensor]
        }
        modules = Layout(joined, divided.shapes).unpack(live)
        renamed = self._models[name].source(modules)
        unknown = renamed.infos.keys() - modules.infos.keys()
        if len(unknown) >= len(adapter.infos.keys() - base.infos):
            return adapter
        # parts that the adapter leaves as they are must exist where others are changed
        touched = {
            tensor: slots
            for tensor, slots in joined.items()
            if any(slot.name in renamed.infos for slot in slots)
        }
        parts = {slot.name for slots in touched.values() for slot in slots}
        wanted = {part: part for part in modules.infos if part in {*renamed.infos, *parts}}
        filled = AlignedSource(renamed, RenamedSource(modules, wanted)) if touched else renamed
        packed = Layout(touched, divided.shapes).pack(filled)
        return RenamedSource(packed, {live.names.get(new, new): new for new in packed.infos})

    @property
    def _has_recipes(self) -> bool:
        """Whether a model stands for the merge of another recipe, which is inserted later."""
        return any(isinstance(model.live, RecipeSource) for model in self._all)

    @property
    def _configuration(self) -> Mapping[str, Any] | None:
        return _read_configuration({**self.side_files()[self._first], **self.assets()}, self._first)

    @property
    def _architecture(self) -> Architecture:
        config = self._configuration
        if config is None:
            raise CheckpointError(
                f"missing config.json next to {self.reference.describe()}",
                hint="Name a directory written by save_pretrained, or use the pool 'checkpoints', "
                "which merges any weights.",
            )
        return self._load_architecture(config, self.reference)

    def _architecture_of(self, weights: WeightSource) -> Architecture:
        """Return the architecture of weights: that of their own directory if tensors differ."""
        if not isinstance(weights, CheckpointSource) or _is_like(weights, self.reference):
            return self._architecture
        paths = (weights.path / name for name in (CONFIG, GENERATION))
        files = {path.name: path for path in paths if path.is_file()}
        config = _read_configuration(files, str(weights.path))
        if config is None:
            return self._architecture
        return self._load_architecture(config, weights)

    def _load_architecture(self, config: Mapping[str, Any], weights: WeightSource) -> Architecture:
        """Return the architecture of weights with this configuration."""
        del weights  # only encoders differ by them
        from pools_lm.architecture import load_architecture  # transformers takes seconds to import

        return load_architecture(self.auto, json.dumps(config))

    @property
    def _first(self) -> str:
        return next(iter(self.by_name))

    def _output_warnings(self) -> Iterator[str]:
        """Yield warnings about what the base or an expert has and the output will lack."""
        if self._tokenizer_change is not None:
            yield from self._tokenizer_change.warnings
        if self._ignored:
            yield (
                f"tensors of {self._first} left out, because transformers ignores them and the "
                f"models differ: {len(self._ignored)}, among them {self._ignored[0]}"
            )
        first, assets = self._all[0], self.assets()
        if first.location is None or not assets:
            return
        if lost := files_not_copied(first.location.names(), assets):
            yield f"files of {first.name} not copied (code never is): {', '.join(lost)}"
        if self._chat_template is not None:
            yield from describe_lost_markers(self._chat_template, assets)
        if not any(map(select_tokenizer_files, (assets, *map(self.files_of, self.experts)))):
            yield f"{first.name} has no tokenizer, so the output has none"


def _read_configuration(files: Files, model: str) -> Mapping[str, Any] | None:
    """Return a model's configuration, with the tokens that its generation configuration states.

    They are those before an answer: `generate` takes them from there.
    """
    config = parse_safe_config(files, model)
    stated = parse_config(files, GENERATION, model) or {}
    names = stated.keys() & {"forced_bos_token_id", "decoder_start_token_id"}
    tokens = {name: stated[name] for name in names if stated[name] is not None}
    return config and {**config, **tokens}


def _is_like(source: WeightSource, first: WeightSource) -> bool:
    """Tell whether a model has the first model's names and shapes."""
    return {name: info.shape for name, info in source.infos.items()} == {
        name: info.shape for name, info in first.infos.items()
    }


def _has_names_of(source: WeightSource, first: WeightSource) -> bool:
    """Tell whether a model has the first model's names up to a prefix, or only some if a delta."""
    if source.is_delta:
        return source.infos.keys() <= first.infos.keys()
    shared = len(match_names(first.infos, source.infos))
    return shared == len(first.infos) == len(source.infos)
