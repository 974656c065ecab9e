"""The recipe that a run left in its output, as far as it determines how the model is measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.report import REPORT, Report
from fusion_core.contracts.specs import AlgorithmSpec, OutputSpec
from fusion_core.errors import PluginError
from fusion_core.planning.resolution import resolve_component, resolve_form
from fusion_core.plugins.recipe_files import load_recipe
from fusion_core.recipe.config import OutputSection, choices_of
from fusion_core.recipe.text import RECIPE
from fusion_core.recipe.validation import validate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core.planning.resolved_recipe import Resolved
    from fusion_core.plugins.manager import PluginManager

#: The sections of a recipe that determine how a finished model is measured.
MEASURING_SECTIONS = ("model_pool", "task_pool", "alignment")


def load_recorded_recipe(directory: Path) -> dict[str, Any]:
    """Return the recipe that a run left in its output; an empty one for another directory."""
    path = directory / RECIPE
    return load_recipe(path) if directory.is_dir() and path.is_file() else {}


def check_not_adapted(directory: Path) -> None:
    """Raise `PluginError` if the model may have adapted to tasks.

    A new report could not say to which.
    """
    path = directory / REPORT
    if not path.is_file():
        return
    try:
        adapted = Report.from_json(json.loads(path.read_bytes())).transductive is not None
    except (OSError, ValueError, RecursionError):  # an unreadable report: assume the worst
        adapted = True
    if adapted:
        raise PluginError(
            f"the algorithm that made {directory} is not installed, and its model may have "
            "adapted to the tasks",
            hint="Install its plugin, or name --task-pool to show scores without recording them.",
        )


def resolve_form_of(
    recipe: Mapping[str, Any], plugins: PluginManager
) -> Resolved[OutputSpec] | None:
    """Resolve the form in which the model of a recipe is written, None for a full model."""
    output = validate(OutputSection, recipe.get("output") or {}, prefix="output")
    return resolve_form(output.forms, plugins)


def resolve_stages_of(
    recipe: Mapping[str, Any], plugins: PluginManager
) -> list[Resolved[AlgorithmSpec]]:
    """Resolve the stages of a recipe, or none if one of them is not installed.

    Raises `RecipeError` for unknown options, because options determine what a stage sees.
    """
    choices = [choice for choice in choices_of(recipe.get("algorithm")) if choice.name is not None]
    try:
        return [
            resolve_component(AlgorithmSpec, choice, plugins, section="algorithm")
            for choice in choices
        ]
    except PluginError:
        return []
