"""Layers of several models one after another, some of them scaled: mergekit's `passthrough`."""

from __future__ import annotations

from glob import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recipes_mergekit.parameters import Setting
    from recipes_mergekit.settings import Rules


def unwrap_stack(model: object, scales: Setting) -> dict[str, Any] | None:
    """Return a stack of layers as the sections of a recipe, with the scale of every slice.

    Returns None for any other model, and for scales that are gradients.
    """
    match model:
        case {"algorithm": {"name": "stack", "slices": slices}, "model_pool": pool}:
            if any(len(rule.values) > 1 for rules in scales for rule in rules):
                return None
            scaled = [{**part, **_scale(rules)} for part, rules in zip(slices, scales, strict=True)]
            return {"algorithm": {"name": "stack", "slices": scaled}, "model_pool": pool}
    return None


def _scale(rules: Rules) -> dict[str, Any]:
    """Return the option of a slice: one factor, or factors by pattern, unless all are 1."""
    factors = {
        "*" if rule.filter is None else f"*{escape(rule.filter)}*": rule.values[0] for rule in rules
    }
    if {*factors.values()} == {1.0}:
        return {}
    if len(factors) == 1:
        return {"scale": factors["*"]}
    return {"scale": factors, "unmatched": "warn"}
