"""Expansion of named pipelines in a recipe into their stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.specs import PipelineSpec
from fusion_core.errors import RecipeError
from fusion_core.formatting import suggest
from fusion_core.recipe.config import stages_in
from fusion_core.recipe.patterns import Selection
from fusion_core.recipe.text import format_value, spell_out

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_core.plugins.manager import PluginManager


def expand_pipelines(algorithm: Any, plugins: PluginManager) -> list[tuple[Any, str | None]]:  # noqa: ANN401 - from YAML
    """Return the stages of a recipe's section `algorithm`, each with the name of its pipeline.

    The name is None for a stage that the recipe itself lists. Options under the name of a stage
    override the pipeline's. Raises `RecipeError` for options that belong to no stage.
    """
    return [pair for stage in stages_in(algorithm) for pair in _expand(stage, plugins)]


def _expand(stage: Any, plugins: PluginManager) -> Iterator[tuple[Any, str | None]]:  # noqa: ANN401
    section: Any = spell_out(stage)
    name = section.get("name") if isinstance(section, Mapping) else None
    pipelines = plugins.components(PipelineSpec)
    if name is None or not any(name in pipeline.names for pipeline in pipelines):
        yield stage, None
        return
    spec = plugins.find_stages(name).spec
    assert isinstance(spec, PipelineSpec)  # noqa: S101 - an algorithm of this name is ambiguous
    options = {key: value for key, value in section.items() if key != "name"}
    _check_options(spec, options, plugins)
    for stage_name, defaults in spec.stages:
        yield {"name": stage_name, **defaults, **(options.get(stage_name) or {})}, spec.name


def _check_options(spec: PipelineSpec, options: Mapping[str, Any], plugins: PluginManager) -> None:
    names = [name for name, _ in spec.stages]
    for key, value in options.items():
        if key not in names:
            hint = suggest(key, names) or _advise(key, names, plugins)
            raise RecipeError(
                f"unknown option {key!r} of pipeline {spec.name!r}, whose options are those of its "
                f"stages: {', '.join(names)}",
                hint=hint,
            )
        if not isinstance(value, Mapping | None):
            raise RecipeError(
                f"expected the options of stage {key!r}, got {format_value(value)}",
                hint=f"Set one of its options, e.g. algorithm.{key}.OPTION={format_value(value)}",
            )


def _advise(option: str, stages: Sequence[str], plugins: PluginManager) -> str:
    """Say which of some stages has an option."""
    if option in Selection.model_fields:
        return f"Name a stage first, as in algorithm.{stages[0]}.{option}"
    for name in reversed(stages):
        if option in plugins.find_stages(name).load_config().model_fields:
            return f"Name the stage first: algorithm.{name}.{option}"
    return f"No stage has it. Their options: fuse info {stages[-1]}"
