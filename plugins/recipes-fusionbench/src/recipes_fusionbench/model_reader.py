"""Reading of single models: paths, adapters and dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes_fusionbench.options import Options, target_of

if TYPE_CHECKING:
    from recipes_import import ImportFindings

BASE = "_pretrained_"
#: Endings of the names of classes that load the models of a kind.
_CLASSES = {
    "clip": ("CLIPVisionModel",),
    "causal-lm": ("ForCausalLM",),
    "seq2seq-lm": ("ForSeq2SeqLM", "ForConditionalGeneration"),
    "sequence-classification": ("ForSequenceClassification",),
    "gpt2": ("GPT2Model",),
    "checkpoints": ("",),
}
#: Functions that load an adapter, with the names of their arguments for base and adapter.
_ADAPTERS = {
    "load_lora_model": ("base_model_path", "peft_model_path"),
    "load_peft_causal_lm": ("base_model_path", "peft_model_path"),
    "load_lora_vision_model_hf": ("base_model_name", "peft_name"),
}
#: The function that loads a CLIP model by the argument `model_name`.
_CLIP_LOADER = "load_fft_vision_model_hf"
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


def path_of(options: Options, name: str) -> str | None:
    """Return the path of what an option loads: a text, or a section with a path."""
    if isinstance(options.values.get(name), dict):
        section = options.section(name)
        return section.text("pretrained_model_name_or_path")
    return options.text(name)


class ModelReader:
    """Reads single models, and remembers their dtypes and adapters."""

    def __init__(self, options: Options, findings: ImportFindings, kind: str) -> None:
        self._options, self._findings, self._kind = options, findings, kind
        #: the dtypes of models whose section states them or could, and of the pool
        self._dtypes: dict[str, str | None] = {}
        #: the keys of models that are named alone, and have the pool's dtype
        self._by_name: set[str] = set()
        #: the base of every adapter, by the name of the model
        self.adapted: dict[str, str] = {}

    def read_model(self, name: str, value: object) -> str | None:
        """Return the path of a model: a directory, an id on the hub, or an adapter."""
        key = f"models.{name}"
        if isinstance(value, str) and value:
            self._by_name.add(key)
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
        loader = target_of(value)
        if loader in _ADAPTERS:
            return self._read_adapter(name, options, loader)
        if loader == _CLIP_LOADER and self._kind == "clip":
            options.ignore("return_vision_model")
            path = options.text("model_name")
            options.refuse_others()
            return path
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
        self._dtypes.setdefault(options.key, None)
        options.refuse_others()
        return path if path is None or revision is None else f"{path}@{revision}"

    def _read_adapter(self, name: str, options: Options, loader: str) -> str | None:
        base, adapter = map(options.text, _ADAPTERS[loader])
        options.ignore("is_trainable", "return_vision_model")
        if not options.switch("merge_and_unload", default=loader == "load_lora_model"):
            reason = "false merges the factors of adapters, which has no counterpart"
            options.refuse("merge_and_unload", reason)
        if base is None or adapter is None:
            options.refuse("", f"expected {' and '.join(_ADAPTERS[loader])}")
            return None
        self.adapted[name] = base
        if loader == "load_peft_causal_lm":
            self.read_dtype(options, default="bfloat16")
        options.refuse_others()
        return adapter

    def check_adapters(self, base: str | None) -> None:
        """Record adapters of another model than the base."""
        for name, owner in self.adapted.items():
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

    def dtype(self, loading: Options) -> str | None:
        """Return the dtype of the output, None for the base's; `loading` holds the pool's options.

        Models without a stated dtype are loaded in fp32.
        """
        self.read_dtype(loading)
        if self._by_name:
            self._dtypes.setdefault(loading.key, None)
        stated = {*self._dtypes.values()} - {None}
        if len({dtype or "float32" for dtype in self._dtypes.values()}) > 1:
            names = ", ".join(sorted(dtype or "none stated" for dtype in {*self._dtypes.values()}))
            self._options.refuse("models", f"expected one dtype for all models, got {names}")
        return next(iter(stated), None)
