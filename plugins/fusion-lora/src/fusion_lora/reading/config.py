"""PEFT's `adapter_config.json`: whether an adapter is a plain LoRA, and its ranks and scales."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_lora.reading.patterns import find_first_matches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ADAPTER_CONFIG = "adapter_config.json"
#: Options under which the task vector is not `scale * B @ A`.
_OTHER_MATHS = (
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "layer_replication",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "trainable_token_indices",
)
#: Every option of PEFT's LoRA (0.6 to 0.21) whose meaning for a merge is known here.
KNOWN_OPTIONS = frozenset(
    (
        *_OTHER_MATHS,
        *("use_dora", "target_parameters"),
        *("peft_type", "task_type", "auto_mapping", "peft_version", "inference_mode"),
        *("base_model_name_or_path", "revision", "r", "lora_alpha", "lora_dropout", "bias"),
        *("use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "init_lora_weights"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("modules_to_save", "ensure_weight_tying", "runtime_config", "enable_lora"),
        # initialisation and training
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config"),
        *("megatron_core", "qalora_group_size", "velora_config", "merge_weights"),
        *("lora_dtype", "lorap_lr_ratio", "lorap_emb_lr"),
    )
)
#: Initialisations that leave the base unchanged; the others subtract something from it.
_SAFE_INITIALISATIONS = (
    *(True, False, None, "true", "false"),
    *("gaussian", "eva", "orthogonal", "mica"),
)
MERGE_WITH_PEFT = "Merge it into its base with PEFT (merge_and_unload) and name the result."


def check_supported(config: Mapping[str, Any], name: str) -> None:
    """Raise `CheckpointError` for an adapter whose task vectors are not plain products."""
    kind = config.get("peft_type")
    reasons = [f"peft_type {kind}"] if kind != "LORA" else []
    reasons += [option for option in _OTHER_MATHS if config.get(option)]
    initialisation = config.get("init_lora_weights", True)
    if initialisation not in _SAFE_INITIALISATIONS:
        reasons.append(f"init_lora_weights {initialisation!r}, which changes the base")
    if reasons:
        raise CheckpointError(
            f"{name}: this adapter is not a plain LoRA: {', '.join(reasons)}", hint=MERGE_WITH_PEFT
        )


def list_saved(config: Mapping[str, Any]) -> list[str]:
    """Return the modules that the adapter stores whole."""
    listed = config.get("modules_to_save")
    return [str(name) for name in listed] if isinstance(listed, list) else []


def read_scales(
    config: Mapping[str, Any], name: str, modules: Sequence[str]
) -> dict[str, tuple[int, float]]:
    """Return each module's rank and the factor of its product.

    Raises `CheckpointError` for patterns that are invalid or take too long, and for a module
    without a rank.
    """
    ranks = _values_by_module(config, "rank_pattern", name, modules)
    alphas = _values_by_module(config, "alpha_pattern", name, modules)
    usual_rank: Any = config.get("r")
    usual_alpha: Any = config.get("lora_alpha")
    scales = {}
    for module in modules:
        try:
            rank = int(ranks.get(module, usual_rank))
            alpha = float(alphas.get(module, usual_alpha))
            scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise CheckpointError(
                f"{name}: {ADAPTER_CONFIG} has no valid rank and alpha for {module}: {error}"
            ) from error
        scales[module] = rank, scale
    return scales


def _values_by_module(
    config: Mapping[str, Any], key: str, name: str, modules: Sequence[str]
) -> dict[str, Any]:
    """Return the value that each module gets from a mapping of patterns, if any matches."""
    try:
        values = dict(config.get(key) or {})
        matches = zip(modules, find_first_matches([*values], modules), strict=True)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{name}: {key} in {ADAPTER_CONFIG}: {error}", hint=MERGE_WITH_PEFT
        ) from error
    by_index = [*values.values()]
    return {module: by_index[index] for module, index in matches if index is not None}
