"""A merge whose tensors are not those of its models: what goes with it, and what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.contracts.algorithm import Algorithm
from fusion_core.contracts.stage import Coordinates
from fusion_core.errors import RecipeError
from fusion_core.planning.pipeline import merge_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.outline import Outline
    from fusion_core.planning.pipeline import PlannedStage

_BY_NAME = ("only", "skip", "overrides", "by_depth")


def outline_of(stages: Sequence[PlannedStage], pool: ModelPool[Any]) -> Outline:
    """Say what a pipeline makes of an aligned pool."""
    return _algorithm_of(stages).outline(pool)


def has_own_outline(stages: Sequence[PlannedStage]) -> bool:
    """Tell whether a pipeline's result may have other tensors than its models."""
    return type(_algorithm_of(stages)).outline is not Algorithm.outline


def _algorithm_of(stages: Sequence[PlannedStage]) -> Algorithm[Any]:
    algorithm = merge_of(stages).stage
    assert isinstance(algorithm, Algorithm)  # noqa: S101 - the kind says so
    return algorithm


def check_outline(stages: Sequence[PlannedStage], outline: Outline, pool: ModelPool[Any]) -> None:
    """Raise `RecipeError` for what takes the models' tensors and the merge's for the same."""
    if outline.is_like(pool.reference.infos):
        return
    merge = merge_of(stages)
    for each in stages:
        if each.kind == "calibrate" or isinstance(each.stage, Coordinates):
            raise RecipeError(
                f"algorithm: {each.name} works on a merge that has the models' tensors, and the "
                f"result of {merge.name} has others",
                hint=f"Leave {each.name} out.",
            )
    selection = None if merge.resolved is None else merge.resolved.selection
    for option in _BY_NAME:
        if getattr(selection, option, None):
            raise RecipeError(
                f"algorithm.{option}: {merge.name} takes the models as they are: its result has "
                "other tensors than they have",
                hint=f"Leave {option} out; transforms before {merge.name} take it.",
            )
