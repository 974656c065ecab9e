"""The `config.json` of a mixture, from that of its dense base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_moe.targets import Target

_THETA = 10_000.0
#: The values that transformers takes for a dense model whose configuration leaves them out. They
#: are written out, because the class of the mixture would take others.
_COMMON: Mapping[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        "vocab_size": 32_000,
        "intermediate_size": 11_008,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "mistral": {
        "vocab_size": 32_000,
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen2": {
        "vocab_size": 151_936,
        "intermediate_size": 22_016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32_768,
    },
    "qwen3": {
        "vocab_size": 151_936,
        "intermediate_size": 22_016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32_768,
        "head_dim": 128,
    },
}
#: Keys of dense models that mixtures lack, or whose values `mixture_config` chooses.
_DENSE_KEYS = (
    "attention_bias",
    "layer_types",
    "max_window_layers",
    "mlp_bias",
    "pretraining_tp",
    "sliding_window",
    "use_sliding_window",
)


def read_model_type(config: Mapping[str, Any] | None, model: str) -> str:
    """Return the `model_type` of a model; raise `CheckpointError` without one."""
    model_type = None if config is None else config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(
            f"algorithm: moe reads the architecture of {model} from its config.json, and "
            f"{'there is none' if config is None else 'it has no model_type'}",
            hint="Name a directory that save_pretrained wrote, or set model_pool.side_files.",
        )
    return model_type


def check_window(config: Mapping[str, Any], target: Target) -> None:
    """Raise `CheckpointError` for a sliding window that the target does not have."""
    window = _find_window(config)
    if window is not None and not (target.has_window and config["model_type"] == "mistral"):
        raise CheckpointError(
            f"algorithm.target: {target.name} cannot limit attention to a sliding window, and "
            f"the base's config.json has one of {window} tokens",
            hint="If no text will be longer, set sliding_window to null in the base's config.json "
            "(for Qwen, use_sliding_window to false).",
        )


def _find_window(config: Mapping[str, Any]) -> int | None:
    """Return the length of a dense model's sliding window; None if it sees all tokens."""
    model_type = config["model_type"]
    if model_type == "mistral":
        window = config.get("sliding_window", _DEFAULTS["mistral"]["sliding_window"])
    elif model_type.startswith("qwen") and config.get("use_sliding_window"):
        window = config.get("sliding_window", 4096)
    else:
        return None
    positions = config.get(
        "max_position_embeddings", _DEFAULTS[model_type]["max_position_embeddings"]
    )
    return None if window is None or window >= positions else int(window)


def mixture_config(
    config: Mapping[str, Any],
    target: Target,
    *,
    experts: int,
    experts_per_token: int,
    attention: frozenset[str],
) -> dict[str, Any]:
    """Return the configuration of a mixture of so many experts.

    `attention` are the names of the tensors in an attention module of the base.
    """
    dense = {**_COMMON, **_DEFAULTS[config["model_type"]], **config}
    if dense.get("num_key_value_heads") is None:
        dense["num_key_value_heads"] = dense["num_attention_heads"]
    if dense.get("head_dim") is None:
        dense.pop("head_dim", None)
    rope = dense.get("rope_parameters")
    if isinstance(rope, dict):
        dense["rope_parameters"] = {"rope_theta": dense.get("rope_theta", _THETA), **rope}
    else:
        dense.setdefault("rope_theta", _THETA)
    size, has_biases = dense["intermediate_size"], "q_proj.bias" in attention
    specific: dict[str, dict[str, Any]] = {
        "mixtral": {"num_local_experts": experts, "sliding_window": _find_window(config)},
        "qwen2_moe": {
            "num_experts": experts,
            "moe_intermediate_size": size,
            "shared_expert_intermediate_size": size,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
            "qkv_bias": has_biases,
            "use_sliding_window": False,
        },
        "qwen3_moe": {
            "num_experts": experts,
            "moe_intermediate_size": size,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
            "attention_bias": has_biases,
            "use_sliding_window": False,
        },
        "glm4_moe": {
            "n_routed_experts": experts,
            "n_shared_experts": 1,
            "moe_intermediate_size": size,
            "first_k_dense_replace": 0,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "num_nextn_predict_layers": 0,
            "partial_rotary_factor": 1.0,
            "attention_bias": has_biases,
            "use_qk_norm": "q_norm.weight" in attention,
        },
    }
    return {
        **{key: value for key, value in dense.items() if key not in _DENSE_KEYS},
        "architectures": [target.model_class],
        "model_type": target.name,
        "num_experts_per_tok": experts_per_token,
        "output_router_logits": False,
        **specific[target.name],
    }
