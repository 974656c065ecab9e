"""Outlines of merges whose tensors differ from their models', and what conflicts with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.contracts.algorithm import Algorithm
from fusion_core.errors import RecipeError
from fusion_core.planning.pipeline import merge_of, merging_algorithm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.outline import Outline
    from fusion_core.planning.pipeline import PlannedStage


def has_own_outline(stages: Sequence[PlannedStage]) -> bool:
    """Tell whether a pipeline's result may have other tensors than its models."""
    return type(merging_algorithm(stages)).outline is not Algorithm.outline


def check_outline(stages: Sequence[PlannedStage], outline: Outline, pool: ModelPool[Any]) -> None:
    """Raise `RecipeError` for stages and options that need a result with the models' tensors."""
    is_like = outline.is_like(pool.reference.infos)
    if is_like and not outline.is_rearranged:
        return
    has = "has them in other places" if is_like else "has others"
    merge = merge_of(stages)
    for planned in stages:
        if planned.changes_result:
            raise RecipeError(
                f"algorithm: {planned.name} works on a merge that has the models' tensors, and the "
                f"result of {merge.name} {has}",
                hint=f"Leave {planned.name} out.",
            )
    if pool.treatments:
        raise RecipeError(
            f"model_pool: {merge.name} takes whole models and their tensors, since its result "
            f"{has}, and the pool's options keep some tensors from it",
            hint="Leave the options router and rest out.",
        )
    if merge.resolved is None:
        return
    for option in ("only", "skip", "overrides", "by_depth"):
        if getattr(merge.resolved.selection, option):
            raise RecipeError(
                f"algorithm.{option}: {merge.name} takes whole models and their tensors, since its "
                f"result {has}",
                hint=f"Leave {option} out; transforms before {merge.name} take it.",
            )
