"""FusionBench's model pools: models, base, dtype and tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipes_fusionbench.options import Options, target_of
from recipes_fusionbench.published import FAMILIES, Family, shorten

if TYPE_CHECKING:
    from recipes_import import ImportFindings

BASE = "_pretrained_"
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
#: Endings of the names of classes that load the models of a kind.
_CLASSES = {
    "clip": ("CLIPVisionModel",),
    "causal-lm": ("ForCausalLM",),
    "seq2seq-lm": ("ForSeq2SeqLM", "ForConditionalGeneration"),
    "sequence-classification": ("ForSequenceClassification",),
    "gpt2": ("GPT2Model",),
    "checkpoints": ("",),
}
_ADAPTERS = ("load_lora_model", "load_peft_causal_lm")
#: Arguments of from_pretrained that change where and how weights are held, not the weights.
_HOLDING = (
    *("low_cpu_mem_usage", "device_map", "attn_implementation", "use_flash_attention_2"),
    *("use_cache", "trust_remote_code", "local_files_only", "cache_dir", "use_safetensors"),
)
_DTYPES = {
    **{name: name for name in ("float32", "float16", "bfloat16")},
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "half": "float16",
    "float": "float32",
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

    @property
    def experts(self) -> list[str]:
        """The names of the models to merge, in their order."""
        return [*self.paths]

    @property
    def has_base(self) -> bool:
        """Whether there is a pretrained model."""
        return self.base is not None

    def require_base(self, user: str) -> None:
        """Record a missing pretrained model that a method or an option needs."""
        if self.base is None:
            self.options.refuse(f"models.{BASE}", f"missing, and {user} needs it")

    def make_section(self, *, has_tasks: bool) -> dict[str, Any]:
        """Return the section of the recipe: a published pool if tasks are measured."""
        if self.family is not None and (has_tasks or self.kind == "gpt2"):
            section = {"name": self.family.pool, "tasks": shorten(self.tasks)}
            return (
                section
                if self.family.variant is None
                else section | {"variant": self.family.variant}
            )
        section = {"name": self.kind}
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
    reader = _Reader(options, findings, kind)
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
    models = Models(options, kind, [*listed], base, experts, is_alone=is_alone)
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


def _read_rest(models: Models, reader: _Reader) -> None:
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
    elif kind == "gpt2" and models.family is None:
        reason = "only the published experts have a counterpart, which leaves out their heads"
        options.refuse("models", reason)
    loading = options.section("model_kwargs")
    reader.read_dtype(loading)
    loading.finish()
    options.ignore("pretrained_model_name_or_path", "base_model")
    models.dtype = reader.dtype()
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


def path_of(options: Options, name: str) -> str | None:
    """Return the path of what an option loads: a text, or a section with a path."""
    if isinstance(options.values.get(name), dict):
        section = options.section(name)
        return section.text("pretrained_model_name_or_path")
    return options.text(name)


class _Reader:
    """Reads single models, and remembers their dtypes and adapters."""

    def __init__(self, options: Options, findings: ImportFindings, kind: str) -> None:
        self._options, self._findings, self._kind = options, findings, kind
        self._dtypes: dict[str, str | None] = {}
        #: the base of every adapter, by the name of the model
        self._adapted: dict[str, str] = {}

    def read_model(self, name: str, value: object) -> str | None:
        """Return the path of a model: a directory, an id on the hub, or an adapter."""
        key = f"models.{name}"
        if isinstance(value, str) and value:
            return value
        if not isinstance(value, dict):
            self._options.refuse(key, f"expected a path or a section that loads it, got {value!r}")
            return None
        options = Options(
            {str(item): value[item] for item in value},
            f"{self._options.key}.{key}",
            self._findings,
        )
        target = str(value.get("_target_"))
        if target.rpartition(".")[2] in _ADAPTERS and target.startswith("fusion_bench."):
            return self._read_adapter(name, options, is_causal="causal" in target)
        return self._read_pretrained(target, options)

    def _read_pretrained(self, target: str, options: Options) -> str | None:
        loader = target.removesuffix(".from_pretrained")
        if not loader.startswith("transformers.") or not loader.endswith(_CLASSES[self._kind]):
            options.refuse("_target_", f"{target} has no counterpart in this pool")
            return None
        path, revision = options.text("pretrained_model_name_or_path"), options.text("revision")
        if path is None:
            options.refuse("pretrained_model_name_or_path", "missing")
        self.read_dtype(options)
        options.finish()
        return path if path is None or revision is None else f"{path}@{revision}"

    def _read_adapter(self, name: str, options: Options, *, is_causal: bool) -> str | None:
        base, adapter = options.text("base_model_path"), options.text("peft_model_path")
        options.ignore("is_trainable")
        if not options.switch("merge_and_unload", default=not is_causal):
            reason = "false merges the factors of adapters, which has no counterpart"
            options.refuse("merge_and_unload", reason)
        if base is None or adapter is None:
            options.refuse("", "expected base_model_path and peft_model_path")
            return None
        self._adapted[name] = base
        if is_causal:
            self.read_dtype(options, default="bfloat16")
        options.finish()
        return adapter

    def check_adapters(self, base: str | None) -> None:
        """Record adapters of another model than the base."""
        for name, owner in self._adapted.items():
            if owner != base:
                reason = f"an adapter of {owner}, and only one of {BASE} can be merged"
                self._options.refuse(f"models.{name}", reason)

    def read_dtype(self, options: Options, default: str | None = None) -> None:
        """Read the dtype in which models are loaded."""
        options.ignore(*_HOLDING)
        for name in ("torch_dtype", "dtype"):
            if options.has(name):
                given = options.text(name)
                self._add_dtype(given, name, options)
                default = None
        if default is not None:
            self._dtypes[options.key] = default

    def _add_dtype(self, given: str | None, name: str, options: Options) -> None:
        dtype = None if given is None else _DTYPES.get(given.removeprefix("torch."))
        if dtype is None and given not in {None, "auto"}:
            options.refuse(name, f"expected one of {', '.join(_DTYPES)}, got {given!r}")
        if dtype is not None:
            self._dtypes[options.key] = dtype
            if dtype != "float32":
                reason = (
                    f"FusionBench also merges in {dtype}; here merges are computed in fp32 and "
                    "rounded once"
                )
                options.warn(name, reason)

    def dtype(self) -> str | None:
        """Return the dtype of the output; None for the base's."""
        dtypes = {*self._dtypes.values()}
        if len(dtypes) > 1:
            names = ", ".join(sorted(map(str, dtypes)))
            self._options.refuse("models", f"expected one dtype for all models, got {names}")
        return next(iter(dtypes), None)
