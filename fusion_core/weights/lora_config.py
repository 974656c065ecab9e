"""What PEFT's `adapter_config.json` says: whether an adapter is a plain LoRA, ranks and scales."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_core.weights.location import ADAPTER_CONFIG

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Options under which the task vector is not `scale * B @ A`.
_OTHER_MATHS = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "layer_replication",
    "arrow_config",
    "target_parameters",
    "trainable_token_indices",
)
_NO_SCALE = (
    LookupError,
    TypeError,
    AttributeError,
    ValueError,
    ArithmeticError,
    RecursionError,
    re.error,
)
_REPEATS, _REPEATED_GROUP = re.compile(r"[*+{]"), re.compile(r"\)[*+{?]")
_MOST_REPEATS = 2
#: Ways to begin that leave the base as it is; the others subtract something from it.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal", "true", "false")


def check_supported(config: Mapping[str, Any], name: str) -> None:
    """Raise `CheckpointError` for an adapter whose task vectors are no plain products."""
    kind = config.get("peft_type")
    reasons = [f"peft_type {kind}"] if kind != "LORA" else []
    reasons += [option for option in _OTHER_MATHS if config.get(option)]
    beginning = config.get("init_lora_weights", True)
    if beginning not in _BEGINNINGS:
        reasons.append(f"init_lora_weights {beginning!r}, which changes the base")
    if reasons:
        raise CheckpointError(
            f"{name}: this adapter is no plain LoRA: {', '.join(reasons)}",
            hint="Merge it into its base with PEFT (merge_and_unload) and name the result.",
        )


def rank_and_scale(module: str, config: Mapping[str, Any], name: str) -> tuple[int, float]:
    """Return a module's rank and the factor before its product, patterns considered."""
    try:
        rank = int(_by_pattern(config.get("rank_pattern"), module, config["r"]))
        alpha = float(_by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
        return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except _NO_SCALE as error:
        raise CheckpointError(
            f"{name}: {ADAPTER_CONFIG} gives {module} no rank and alpha: {error}"
        ) from error


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:  # noqa: ANN401
    """Return the value of the first pattern that a module's name ends with, as PEFT does.

    Patterns come with the adapter: what could keep a regular expression busy for hours is refused.
    """
    for pattern, value in (patterns or {}).items():
        if len(_REPEATS.findall(pattern)) > _MOST_REPEATS or _REPEATED_GROUP.search(pattern):
            raise ValueError(f"the pattern {pattern[:80]!r} is too involved")
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
