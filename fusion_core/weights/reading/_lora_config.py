"""What PEFT's `adapter_config.json` says: whether an adapter is a plain LoRA, ranks and scales."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_core.machine.patterns import first_matches
from fusion_core.weights.reading.location import ADAPTER_CONFIG

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Options under which the task vector is not `scale * B @ A`.
_OTHER_MATHS = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "layer_replication",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
)
#: Every option of PEFT's LoRA (0.6 to 0.21) whose meaning for a merge is known here.
KNOWN_OPTIONS = frozenset(
    (
        *_OTHER_MATHS,
        *("peft_type", "task_type", "auto_mapping", "peft_version", "inference_mode"),
        *("base_model_name_or_path", "revision", "r", "lora_alpha", "lora_dropout", "bias"),
        *("use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "init_lora_weights"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("modules_to_save", "ensure_weight_tying", "runtime_config", "enable_lora"),
        # how an adapter begins or trains
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config"),
        *("megatron_core", "qalora_group_size", "velora_config", "merge_weights"),
        *("lora_dtype", "lorap_lr_ratio", "lorap_emb_lr"),
    )
)
_NO_SCALE = (LookupError, TypeError, ValueError, ArithmeticError)
#: Ways to begin that leave the base as it is; the others subtract something from it.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal", "true", "false")


def check_supported(config: Mapping[str, Any], name: str) -> None:
    """Raise `CheckpointError` for an adapter whose task vectors are not plain products."""
    kind = config.get("peft_type")
    reasons = [f"peft_type {kind}"] if kind != "LORA" else []
    reasons += [option for option in _OTHER_MATHS if config.get(option)]
    beginning = config.get("init_lora_weights", True)
    if beginning not in _BEGINNINGS:
        reasons.append(f"init_lora_weights {beginning!r}, which changes the base")
    if reasons:
        raise CheckpointError(
            f"{name}: this adapter is not a plain LoRA: {', '.join(reasons)}",
            hint="Merge it into its base with PEFT (merge_and_unload) and name the result.",
        )


class Scales:
    """Every module's rank and the factor before its product.

    Raises `CheckpointError` for patterns that are invalid or take too long, and for a module
    without a rank.
    """

    def __init__(self, config: Mapping[str, Any], name: str, modules: Sequence[str]) -> None:
        self._name = name
        self._rslora = bool(config.get("use_rslora"))
        self._usual: tuple[Any, Any] = (config.get("r"), config.get("lora_alpha"))
        self._own = [self._given(config, key, modules) for key in ("rank_pattern", "alpha_pattern")]

    def of(self, module: str) -> tuple[int, float]:
        """Return a module's rank and factor."""
        try:
            rank, alpha = (
                given.get(module, usual)
                for usual, given in zip(self._usual, self._own, strict=True)
            )
            rank, alpha = int(rank), float(alpha)
            return rank, alpha / (math.sqrt(rank) if self._rslora else rank)
        except _NO_SCALE as error:
            raise CheckpointError(
                f"{self._name}: {ADAPTER_CONFIG} gives {module} no rank and alpha: {error}"
            ) from error

    def _given(self, config: Mapping[str, Any], key: str, modules: Sequence[str]) -> dict[str, Any]:
        """Return the values that a mapping of patterns gives, by module."""
        try:
            values = dict(config.get(key) or {})
            matches = zip(modules, first_matches([*values], modules), strict=True)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self._name}: {key} in {ADAPTER_CONFIG}: {error}",
                hint="Merge it into its base with PEFT (merge_and_unload) and name the result.",
            ) from error
        by_index = [*values.values()]
        return {module: by_index[index] for module, index in matches if index is not None}
