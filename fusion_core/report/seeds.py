"""Runs of one recipe that differ in the seed alone: their mean, and how far they lie apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.measures import Repeated
from fusion_core.recipe.text import RECIPE, load_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core.contracts.report import Report

#: What two runs of one recipe may differ in.
_APART = ("seed", "output")


def by_recipe(reports: Mapping[str, Report]) -> list[list[str]]:
    """Group directories whose resolved recipes are the same but for seed and output.

    A directory without a recipe, or a second one of the same seed, is of no other's group.
    """
    groups: dict[str, dict[Any, str]] = {}
    for name in reports:
        path = Path(name, RECIPE)
        recipe = load_recipe(path) if path.is_file() else {"alone": name}
        same = {key: each for key, each in recipe.items() if key not in _APART}
        key = json.dumps(same, sort_keys=True, default=str)
        seeds = groups.setdefault(key, {})
        if recipe.get("seed") in seeds:
            groups[f"{key} {name}"] = {None: name}
        else:
            seeds[recipe.get("seed")] = name
    return [list(each.values()) for each in groups.values()]


def over_seeds(reports: Mapping[str, Report]) -> dict[str, Report]:
    """Return a report for each recipe: means over its runs, by the first one's name."""
    return {
        _name_of(group): _mean_of([reports[name] for name in group]) for group in by_recipe(reports)
    }


def _name_of(group: Sequence[str]) -> str:
    return group[0] if len(group) == 1 else f"{group[0]} ({len(group)} seeds)"


def _mean_of(runs: Sequence[Report]) -> Report:
    """Return the mean of runs; base and experts, which no seed changes, are the first one's.

    What is known of their examples is left out: beside intervals over seeds, its would mislead.
    """
    first = runs[0]
    tasks = [task for task in first.tasks if all(task in each.tasks for each in runs)]
    means = {task: Repeated([each.tasks[task] for each in runs]) for task in tasks}
    return replace(first.without_outcomes(), tasks=means)
