"""FusionBench's model pools: models, base, dtype and tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipes_fusionbench.model_reader import BASE, ModelReader, path_of
from recipes_fusionbench.options import target_of
from recipes_fusionbench.published import FAMILIES, Family, shorten

if TYPE_CHECKING:
    from recipes_fusionbench.options import Options
    from recipes_import import ImportFindings

#: What merges of each pool's models need: the kind of their counterpart.
KINDS = {
    "CLIPVisionModelPool": "clip",
    "CausalLMPool": "causal-lm",
    "Seq2SeqLMPool": "seq2seq-lm",
    "SequenceClassificationModelPool": "sequence-classification",
    "HuggingFaceGPT2ClassificationPool": "gpt2",
    "GPT2ForSequenceClassificationPool": "gpt2",
    "BaseModelPool": "checkpoints",
    "AutoModelPool": "checkpoints",
}


@dataclass
class Models:
    """The models of a pool, by the names that they have in the recipe."""

    options: Options
    kind: str
    #: all names in the file, those of special models too
    names: list[str]
    base: str | None
    paths: dict[str, str]
    dtype: str | None = None
    tokenizer: str | None = None
    #: the published family that has all models, and their tasks
    family: Family | None = None
    tasks: tuple[str, ...] = ()
    #: whether there is only the pretrained model, which is measured and not merged
    is_alone: bool = False
    #: whether some models are adapters
    has_adapters: bool = False

    @property
    def experts(self) -> list[str]:
        """The names of the models to merge, in their order."""
        return [*self.paths]

    @property
    def has_base(self) -> bool:
        """Whether there is a pretrained model."""
        return self.base is not None

    @property
    def is_measured(self) -> bool:
        """Whether the pool has tasks of its own, which are measured without a task pool, too."""
        return self.kind == "gpt2" and self.family is not None

    @property
    def has_heads(self) -> bool:
        """Whether files may have heads, which FusionBench does not load."""
        return self.kind == "gpt2" and self.family is None

    def require_base(self, user: str) -> None:
        """Record a missing pretrained model that a method or an option needs."""
        if self.base is None:
            self.options.refuse(f"models.{BASE}", f"missing, and {user} needs it")

    def make_section(self, *, has_tasks: bool) -> dict[str, Any]:
        """Return the section of the recipe: a published pool if tasks are measured."""
        if self.family is not None and (has_tasks or self.is_measured):
            section = {"name": self.family.pool, "tasks": shorten(self.tasks)}
            return (
                section
                if self.family.variant is None
                else section | {"variant": self.family.variant}
            )
        is_plain = self.kind == "gpt2" or (self.kind == "clip" and self.has_adapters)
        section = {"name": "checkpoints" if is_plain else self.kind}
        if self.tokenizer is not None:
            section["tokenizer"] = self.tokenizer
        if self.base is not None:
            section["base"] = self.base
        return {**section, "models": dict(self.paths)}


def read_models(options: Options, findings: ImportFindings) -> Models | None:
    """Read the section `modelpool`. Returns None if it hides what else is wrong."""
    kind = KINDS.get(target_of(options.values))
    if kind is None:
        shown = options.values.get("_target_") or options.values.get("type")
        options.refuse("", f"{shown} has no counterpart" if shown else "missing")
        return None
    listed = options.items("models")
    if not listed:
        options.refuse("models", "missing")
        return None
    reader = ModelReader(options, findings, kind)
    paths = {name: reader.read_model(name, listed[name]) for name in listed if not _is_other(name)}
    for name in listed:
        if _is_other(name):
            options.warn(f"models.{name}", "ignored: not a model to merge")
    base = paths.pop(BASE, None)
    experts = {name: path for name, path in paths.items() if path}
    reader.check_adapters(base)
    if "base" in experts:
        options.refuse("models.base", "fusion-core uses this name for the pretrained model")
    is_alone = not paths and base is not None
    if is_alone:
        experts = {"pretrained": str(base)}
    elif not experts:
        options.refuse("models", "expected at least one model to merge")
        return None
    has_adapters = bool(reader.adapted)
    models = Models(
        options, kind, [*listed], base, experts, is_alone=is_alone, has_adapters=has_adapters
    )
    _find_family(models)
    _read_rest(models, reader)
    return models


def _is_other(name: str) -> bool:
    """Tell whether a name stands for a model that FusionBench does not merge."""
    return name != BASE and name.startswith("_") and name.endswith("_")


def _find_family(models: Models) -> None:
    for family in FAMILIES:
        tasks = family.tasks_of(models.base, models.paths) if family.kind == models.kind else None
        if tasks is not None:
            models.family, models.tasks = family, tuple(tasks)
            models.paths = dict(zip(tasks, models.paths.values(), strict=True))


def _read_rest(models: Models, reader: ModelReader) -> None:
    """Read the options besides the models."""
    options, kind = models.options, models.kind
    options.ignore("train_datasets", "val_datasets", "test_datasets", "enable_lazy_loading")
    options.ignore(*(name for name in options.values if name.startswith("_")))
    if kind == "clip":
        options.ignore("processor")
        reason = "expected hf: models are read from the Hugging Face hub"
        options.expect("platform", "hf", "huggingface", reason=reason)
        if models.base is None:
            options.refuse(f"models.{BASE}", "missing, and the pool clip needs it")
    elif models.has_heads:
        options.warn("models", "heads that only experts have are left out, as GPT2Model does")
    loading = options.section("model_kwargs")
    models.dtype = reader.dtype(loading)
    loading.finish()
    options.ignore("pretrained_model_name_or_path", "base_model")
    models.tokenizer = _read_tokenizer(models)
    options.finish()


def _read_tokenizer(models: Models) -> str | None:
    """Return the model whose tokenizer the merge gets; None for the base's."""
    if models.kind != "causal-lm":
        models.options.ignore("tokenizer")
        return None
    path = path_of(models.options, "tokenizer")
    if path is None or path == models.base:
        return None
    for name, expert in models.paths.items():
        if expert == path:
            return name
    models.options.refuse("tokenizer", f"{path} is none of the models, whose tokenizers are kept")
    return None
