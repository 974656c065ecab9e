"""What two models' configurations say that their tensors do not show: rope, heads, activation.

Both are brought to one spelling first: transformers 4 and 5 write rope differently, GPT-2 has names
of its own. Then every key that differs is judged by the words in its name, so that keys that nobody
foresaw are not passed over: at the least they are a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from fusion_core.weights.aligning._comparison import are_equal, excerpts, measure, most_serious
from fusion_core.weights.aligning._difference import Doubt
from fusion_core.weights.reading.assets import CONFIG

if TYPE_CHECKING:
    from fusion_core.weights.aligning._models import Models

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
_SAME = {
    "swish": "silu",
    "gelu_python": "gelu",
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate"), "gelu_pytorch_tanh"),
    "mrope": "default",
    "su": "longrope",
}
#: They differ by less than what bfloat16 rounds.
_ALIKE = {"gelu", "gelu_pytorch_tanh"}
#: What a key means that is not there, for the kinds of models that agree on it.
_LLAMAS = frozenset({"llama", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "phi3"})
_DEFAULTS_OF_LLAMAS = {
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
#: Where a model's class name ends and its head begins.
_HEADS = (
    *("For", "LMHead", "DoubleHeads", "WithLMHead", "Head", "Model", "PreTrained"),
    *("Vision", "Text", "Encoder", "Decoder"),
)
_LONGEST_CLASS = 200

_NOT_COMPARED = frozenset(
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
_BOOKKEEPING = frozenset(
    (
        *("dropout", "drop", "pdrop", "layerdrop", "initializer", "init", "jitter", "loss", "coef"),
        *("label", "labels", "id2label", "label2id", "version", "dtype", "cache", "checkpointing"),
        *("summary", "unsloth", "generation", "quantization"),
    )
)
_TOKENS = ("_token_id", "_token_ids", "_token_index")
_UNCERTAIN = frozenset(("eps", "epsilon", "window", "max"))
_VITAL = frozenset(
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


def conflicts(models: Models) -> Iterator[Doubt]:
    """Compare every model's configuration with the first that says something."""
    stated = [model for model in models.by_name.values() if model.config(CONFIG)]
    for model in islice(stated, 1, None):
        doubts = _differences(
            stated[0].config(CONFIG), model.config(CONFIG), model.name, measure(stated[0])
        )
        yield from most_serious(list(doubts), model.name)


def _differences(ours: Config, theirs: Config, expert: str, first: str) -> Iterator[Doubt]:
    part, whole = _part_of(ours, theirs), _part_of(theirs, ours)
    if part is None and whole is None:
        yield from _other_kind(ours, theirs, expert, first)
    ours, theirs = part or ours, whole or theirs
    if ("text_config" in ours) != ("text_config" in theirs):  # transformers 4 wrote some without
        ours, theirs = _lifted(ours), _lifted(theirs)
    mine, other = _flat(ours), _flat(theirs)
    if _model_type(ours) in _LLAMAS:
        mine, other = {**_DEFAULTS_OF_LLAMAS, **mine}, {**_DEFAULTS_OF_LLAMAS, **other}
    for key in mine.keys() & other.keys():
        serious, values = _is_serious(key), (other[key], mine[key])
        if serious is not None and not are_equal(*values):
            shown = excerpts(*values)
            problem = f"{shown[0]}, {first}'s is {shown[1]}"
            alike = all(isinstance(value, str) and value in _ALIKE for value in values)
            yield Doubt(f"config.json {key[:80]}", expert, problem, serious and not alike)


def _part_of(whole: Config, other: Config) -> Config | None:
    """Return the part of a model that another one is alone: CLIP's vision tower."""
    kind, wanted = whole.get("model_type"), other.get("model_type")
    if kind == wanted or not isinstance(wanted, str):
        return None
    for key, value in whole.items():
        if isinstance(value, dict) and key.endswith("_config"):
            usual = f"{kind}_{key.removesuffix('_config')}_model"
            if value.get("model_type", usual) == wanted:
                return value
    return None


def _other_kind(ours: Config, theirs: Config, expert: str, first: str) -> Iterator[Doubt]:
    for key, read in (("model_type", _model_type), ("architectures", _family)):
        mine, other = read(ours), read(theirs)
        if mine and other and mine.lower() != other.lower():
            shown = excerpts(theirs[key], ours[key])
            yield Doubt(f"config.json {key}", expert, f"{shown[0]}, {first}'s is {shown[1]}")
            return


def _model_type(config: Config) -> str:
    kind = config.get("model_type")
    return kind if isinstance(kind, str) else ""


def _family(config: Config) -> str:
    """Return a model's class without its head: LlamaForCausalLM and LlamaModel are Llamas."""
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else ""
    name = first[:_LONGEST_CLASS] if isinstance(first, str) else ""
    return name[: min((at for head in _HEADS if (at := name.find(head)) > 0), default=len(name))]


def _flat(config: Config, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in _spelled(config).items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _lifted(config: Config) -> dict[str, Any]:
    rest = {key: value for key, value in config.items() if key != "text_config"}
    return {**_mapping(config.get("text_config")), **rest}


def _spelled(config: Config) -> dict[str, Any]:
    """Bring one level of a configuration to one spelling, what follows from the rest added."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = _ALIASES.get(key, key)
        if found.get(name) is None or (key == "hidden_activation" and value is not None):
            found[name] = _SAME.get(value, value) if isinstance(value, str) else value
    found |= _rope(found.pop("rope_scaling", None), found.pop("rope_parameters", None))
    if found.get("use_sliding_window") is False:
        found.pop("sliding_window", None)
    heads, size = found.get("num_attention_heads"), found.get("hidden_size")
    if type(heads) is int and heads > 0 and type(size) is int:
        for key, usual in (("num_key_value_heads", heads), ("head_dim", size // heads)):
            found[key] = usual if found.get(key) is None else found[key]
    return found


def _rope(scaling: Any, parameters: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Spell rope as transformers 4 does, `rope_theta` beside the scaling; 5 has it all in one."""
    given = {**_mapping(scaling), **_mapping(parameters)}
    layers = {name: each for name, each in given.items() if isinstance(each, dict)}
    if layers:  # by the type of layer, as Gemma 3
        local = _mapping(layers.pop("sliding_attention", None)).get("rope_theta")
        own = _rope(None, layers.pop("full_attention", None))
        return {**own, **layers, **({} if local is None else {"rope_local_base_freq": local})}
    beside = ("rope_theta", "partial_rotary_factor")
    lifted: dict[str, Any] = {key: given.pop(key) for key in beside if key in given}
    kind = given.pop("rope_type", given.pop("type", None))
    rest = {"rope_type": _SAME.get(kind, kind) if isinstance(kind, str) else "default", **given}
    return {**lifted, **{f"rope_scaling.{key}": value for key, value in rest.items()}}


def _mapping(value: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return value if isinstance(value, dict) else {}


def _is_serious(key: str) -> bool | None:
    """Tell whether a key makes a merge meaningless where it differs; None if it says nothing."""
    parts = key.split(".")
    words = set(parts[-1].lower().split("_"))
    if (
        key.endswith(_TOKENS)
        or any(part.startswith("_") or part in _NOT_COMPARED for part in parts)
        or any(not _BOOKKEEPING.isdisjoint(part.lower().split("_")) for part in parts)
    ):
        return None
    if "rope_scaling" in parts or not _UNCERTAIN.isdisjoint(words):
        return False
    return not _VITAL.isdisjoint(words)
