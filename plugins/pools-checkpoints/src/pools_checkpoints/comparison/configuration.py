"""Differences of configurations that tensors do not show: rope, heads, activation.

Configurations are first brought to one spelling, since transformers 4 and 5 write rope differently
and GPT-2 has its own names. Then every key that differs is judged by the words in its name. An
unforeseen key is at least a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fusion_core.weights import Difference
from pools_checkpoints.comparison.differences import contrast, most_serious
from pools_checkpoints.comparison.models import architecture
from pools_checkpoints.comparison.rows import are_equal
from pools_checkpoints.files import CONFIG, is_token_id

if TYPE_CHECKING:
    from pools_checkpoints.comparison.models import Models

Config = Mapping[str, Any]

_ALIASES = {
    **dict.fromkeys(("n_embd", "d_model"), "hidden_size"),
    **dict.fromkeys(("n_layer", "n_layers", "num_layers"), "num_hidden_layers"),
    **dict.fromkeys(("n_head", "n_heads", "num_heads"), "num_attention_heads"),
    **dict.fromkeys(("n_inner", "d_ff", "ffn_dim"), "intermediate_size"),
    **dict.fromkeys(("n_positions", "n_ctx"), "max_position_embeddings"),
    **dict.fromkeys(("num_kv_heads", "n_head_kv"), "num_key_value_heads"),
    **dict.fromkeys(("activation_function", "hidden_activation"), "hidden_act"),
    "d_kv": "head_dim",
    "rotary_emb_base": "rope_theta",
    "rotary_pct": "partial_rotary_factor",
}
_SYNONYMS = {
    "swish": "silu",
    "gelu_python": "gelu",
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate"), "gelu_pytorch_tanh"),
    "mrope": "default",
    "su": "longrope",
}
#: Their values differ by less than the rounding of bfloat16.
_ALIKE = {"gelu", "gelu_pytorch_tanh"}
#: Values of missing keys, for the kinds of models that agree on them.
_LLAMAS = frozenset({"llama", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "phi3"})
_DEFAULTS_OF_LLAMAS = {
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
#: Where the name of a model's class ends and that of its head begins.
_HEADS = (
    *("For", "LMHead", "DoubleHeads", "WithLMHead", "Head", "Model", "PreTrained"),
    *("Vision", "Text", "Encoder", "Decoder"),
)

#: Keys that do not change what tensors mean, and keys that other rows of the table compare.
_IGNORED_KEYS = frozenset(
    (
        *("model_type", "architectures", "auto_map", "pruned_heads", "tokenizer_class", "prefix"),
        *("attn_implementation", "experts_implementation", "use_bfloat16", "torchscript"),
        *("vocab_size", "return_dict", "pretraining_tp", "finetuning_task", "problem_type"),
        *("task_specific_params", "chunk_size_feed_forward", "license", "is_decoder"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_router_logits"),
        *("min_length", "max_length", "do_sample", "temperature", "top_k", "top_p", "typical_p"),
        *("num_beams", "num_beam_groups", "num_return_sequences", "early_stopping"),
        *("diversity_penalty", "length_penalty", "repetition_penalty", "bad_words_ids"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "suppress_tokens"),
        *("begin_suppress_tokens", "remove_invalid_values", "exponential_decay_length_penalty"),
    )
)
#: Words of keys that concern training, storing or naming, not what a model computes.
_BOOKKEEPING_WORDS = frozenset(
    (
        *("dropout", "drop", "pdrop", "layerdrop", "initializer", "init", "jitter", "loss", "coef"),
        *("label", "labels", "id2label", "label2id", "version", "dtype", "cache", "checkpointing"),
        *("summary", "unsloth", "generation", "quantization"),
    )
)
#: Words of keys that may make a merge meaningless, and words of keys that do.
_DOUBTFUL_WORDS = frozenset(("eps", "epsilon", "window", "max"))
_SERIOUS_WORDS = frozenset(
    (
        *("size", "sizes", "dim", "dims", "embd", "layer", "layers", "head", "heads", "depth"),
        *("depths", "width", "widths", "channels", "groups", "rank", "kernel", "stride", "conv"),
        *("num", "n", "d", "ffn", "experts", "expert", "topk", "tok", "gated", "gate", "proj"),
        *("act", "activation", "norm", "normalize", "normalization", "rms", "bias", "tie", "tied"),
        *("rope", "theta", "rotary", "alibi", "type", "types", "relative", "absolute", "causal"),
        *("scale", "scalar", "multiplier", "softcap", "softcapping", "parallel", "cross"),
        *("encoder", "decoder", "residual", "query", "qk", "qkv", "block", "blocks", "interval"),
    )
)


def conflicts(models: Models) -> Iterator[Difference]:
    """Compare every model's configuration with the first one that is not empty."""
    configured = [model for model in models.by_name.values() if model.config(CONFIG)]
    for model in configured[1:]:
        first = configured[0]
        differences = _differences(first.config(CONFIG), model.config(CONFIG), first.label)
        yield from most_serious(
            (
                Difference(f"{CONFIG} {key[:80]}", model.name, problem, is_serious=is_serious)
                for key, problem, is_serious in differences
            ),
            model.name,
        )


def _differences(first: Config, other: Config, label: str) -> Iterator[tuple[str, str, bool]]:
    """Yield the keys that differ, a description, and whether the difference is serious."""
    first_part, other_part = _part_like(first, other), _part_like(other, first)
    if first_part is None and other_part is None:
        for key, read in (("model_type", _model_type), ("architectures", _family)):
            names = read(first).lower(), read(other).lower()
            if all(names) and names[0] != names[1]:
                yield key, contrast(other[key], first[key], label), True
                break
    first, other = first_part or first, other_part or other
    if ("text_config" in first) != ("text_config" in other):  # transformers 4 wrote some without
        first, other = _lift_text_config(first), _lift_text_config(other)
    defaults = _DEFAULTS_OF_LLAMAS if _model_type(first) in _LLAMAS else {}
    flat_first, flat_other = {**defaults, **_flatten(first)}, {**defaults, **_flatten(other)}
    for key in flat_first.keys() & flat_other.keys():
        values = flat_other[key], flat_first[key]
        is_serious = _is_serious(key)
        if is_serious is not None and not are_equal(*values):
            are_alike = all(isinstance(value, str) and value in _ALIKE for value in values)
            yield key, contrast(*values, label), is_serious and not are_alike


def _part_like(whole: Config, other: Config) -> Config | None:
    """Return the part of a model that the other model consists of, like CLIP's vision tower."""
    kind, wanted = whole.get("model_type"), other.get("model_type")
    if kind == wanted or not isinstance(wanted, str):
        return None
    for key, value in whole.items():
        if isinstance(value, dict) and key.endswith("_config"):
            usual = f"{kind}_{key.removesuffix('_config')}_model"
            if value.get("model_type", usual) == wanted:
                return value
    return None


def _model_type(config: Config) -> str:
    kind = config.get("model_type")
    return kind if isinstance(kind, str) else ""


def _family(config: Config) -> str:
    """Return a model's class without its head: Llama for LlamaForCausalLM and LlamaModel."""
    name = architecture(config)
    ends = [end for head in _HEADS if (end := name.find(head)) > 0]
    return name[: min(ends, default=len(name))]


def _flatten(config: Config, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in _normalise(config).items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _lift_text_config(config: Config) -> dict[str, Any]:
    rest = {key: value for key, value in config.items() if key != "text_config"}
    return {**_mapping(config.get("text_config")), **rest}


def _normalise(config: Config) -> dict[str, Any]:
    """Bring one level of a configuration to one spelling, and add what follows from other keys."""
    normal: dict[str, Any] = {}
    for key, value in config.items():
        name = _ALIASES.get(key, key)
        if normal.get(name) is None or (key == "hidden_activation" and value is not None):
            normal[name] = _SYNONYMS.get(value, value) if isinstance(value, str) else value
    normal |= _rope(
        {
            **_mapping(normal.pop("rope_scaling", None)),
            **_mapping(normal.pop("rope_parameters", None)),
        }
    )
    if normal.get("use_sliding_window") is False:
        normal.pop("sliding_window", None)
    heads, size = normal.get("num_attention_heads"), normal.get("hidden_size")
    if type(heads) is int and heads > 0 and type(size) is int:
        for key, usual in (("num_key_value_heads", heads), ("head_dim", size // heads)):
            normal[key] = usual if normal.get(key) is None else normal[key]
    return normal


def _rope(settings: dict[str, Any]) -> dict[str, Any]:
    """Spell rope like transformers 4, with `rope_theta` next to the scaling; 5 nests all of it."""
    per_layer_type = {key: value for key, value in settings.items() if isinstance(value, dict)}
    if per_layer_type:  # Gemma 3
        local = _mapping(per_layer_type.pop("sliding_attention", None)).get("rope_theta")
        rope = _rope(_mapping(per_layer_type.pop("full_attention", None)))
        rope |= per_layer_type
        return rope if local is None else {**rope, "rope_local_base_freq": local}
    rope = {
        key: settings[key] for key in ("rope_theta", "partial_rotary_factor") if key in settings
    }
    kind = settings.get("rope_type", settings.get("type"))
    rope["rope_scaling.rope_type"] = (
        _SYNONYMS.get(kind, kind) if isinstance(kind, str) else "default"
    )
    named = {*rope, "rope_type", "type"}
    return rope | {
        f"rope_scaling.{key}": value for key, value in settings.items() if key not in named
    }


def _mapping(value: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return value if isinstance(value, dict) else {}


def _is_serious(key: str) -> bool | None:
    """Tell whether a difference in a key makes a merge meaningless; None if it does not matter."""
    parts = key.split(".")
    words = set(parts[-1].lower().split("_"))
    if is_token_id(key) or any(
        part.startswith("_")
        or part in _IGNORED_KEYS
        or not _BOOKKEEPING_WORDS.isdisjoint(part.lower().split("_"))
        for part in parts
    ):
        return None
    if "rope_scaling" in parts or not _DOUBTFUL_WORDS.isdisjoint(words):
        return False
    return not _SERIOUS_WORDS.isdisjoint(words)
