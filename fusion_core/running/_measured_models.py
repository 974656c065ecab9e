"""The models that an evaluation measures: which pool builds them, and with which files."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from fusion_core.contracts.run import RunInfo
from fusion_core.contracts.specs import ModelPoolSpec, TaskPoolSpec
from fusion_core.errors import RecipeError
from fusion_core.planning.plan import name_plans
from fusion_core.planning.resolution import ANY_MODELS
from fusion_core.recipe.config import AlignmentPolicy, Choice, choice_of
from fusion_core.recipe.validation import validate
from fusion_core.running._context import run_nested
from fusion_core.weights import SerialExecutor
from fusion_core.weights.reading.assets import list_side_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.planning.nested import RecipeSource
    from fusion_core.planning.resolved_recipe import Resolved
    from fusion_core.planning.run_plan import Plan
    from fusion_core.plugins.manager import PluginManager
    from fusion_core.weights import WeightSource

_LOG = logging.getLogger(__name__)
_NAME_POOL = (
    "If it is of a family that a pool knows, name it: fuse evaluate {} --pool NAME; see: fuse list "
    "pools\nAny other model is measured with its own library."
)


def choose_pools(
    recipe: Mapping[str, Any],
    recorded: Mapping[str, Any],
    directory: Path,
    plugins: PluginManager,
) -> tuple[Choice, Choice]:
    """Return the model pool and the task pool of a recipe, the first completed.

    If the recipe's model pool builds no models, the one whose default task pool the recipe names
    does. A pool of checkpoints without models gets those of the recorded recipe, or else the
    measured model alone. Raises `RecipeError` if no pool builds the model.
    """
    pool, tasks = choice_of(recipe.get("model_pool")), choice_of(recipe.get("task_pool"))
    recorded_pool = choice_of(recorded.get("model_pool"))
    # the pool of checkpoints builds no models: it does not know their class
    if pool.name is None or plugins.find(ModelPoolSpec, pool.name).spec.name == ANY_MODELS:
        is_chosen = recipe.get("model_pool") != recorded.get("model_pool")
        pool = _find_pool(Choice() if is_chosen else tasks, directory, plugins)
    known = plugins.find(ModelPoolSpec, pool.name or "").load_config().model_fields.keys()
    if not {"base", "models"} <= known or "models" in pool.options:
        return pool, tasks
    models = {key: recorded_pool.options[key] for key in recorded_pool.options.keys() & known}
    if "models" not in models:
        models = {"models": {} if "base" in pool.options else {"model": str(directory)}}
    return Choice(name=pool.name, **{**models, **pool.options}), tasks


@dataclass(frozen=True)
class MeasuredModels:
    """The models of an evaluation, as a run of the recipe has them."""

    #: as they are stored; tasks are bound to these, and may read heads that the merge lacks
    stored: ModelPool[Any]
    #: with the tensors of the merge; these are measured
    aligned: ModelPool[Any]

    @classmethod
    def create(
        cls,
        resolved: Resolved[ModelPoolSpec],
        plans: Mapping[RecipeSource, Plan],
        recipe: Mapping[str, Any],
    ) -> Self:
        """Create a recipe's models, with its nested recipes merged."""
        stored: ModelPool[Any] = resolved.create()
        nested, info = name_plans(plans, stored), RunInfo(recipe, None)
        merges, _, _ = run_nested(nested, info, SerialExecutor(), None)
        policy = validate(AlignmentPolicy, recipe.get("alignment") or {}, prefix="alignment")
        stored = stored.with_sources(merges)
        return cls(stored, stored.aligned(policy) if stored.experts else stored)

    def with_own_files(self, weights: WeightSource, directory: Path) -> Self | None:
        """Return the models with a directory's configuration and tokenizer, None if they are equal.

        Warns of each difference.
        """
        files = list_side_files(directory) if directory.is_dir() and not weights.is_delta else {}
        differences = self.aligned.describe_differences(weights, files) if files else []
        if not differences:
            return None
        stored, aligned = self.stored.with_assets(files), self.aligned.with_assets(files)
        whose = "the base's" if stored is None else "its own"
        for difference in differences:
            _LOG.warning("%s; the model is measured with %s", difference, whose)
        return None if stored is None or aligned is None else type(self)(stored, aligned)


def _find_pool(tasks: Choice, directory: Path, plugins: PluginManager) -> Choice:
    """Return the model pool whose default task pool is chosen."""
    name = plugins.find(TaskPoolSpec, tasks.name).spec.name if tasks.name else None
    for component in plugins.components(ModelPoolSpec):
        if name is not None and component.spec.default_task_pool == name:
            return Choice(name=component.qualified_name)
    hints = [] if name else list(_hint_at_task_pools(tasks.options.get("tasks") or (), plugins))
    raise RecipeError(
        f"cannot build the model in {directory}: its class is unknown",
        hint="\n".join([*hints, _NAME_POOL.format(directory)]),
    )


def _hint_at_task_pools(names: Iterable[str], plugins: PluginManager) -> Iterator[str]:
    """Yield a hint for each task pool that has these tasks, or whose name is among them."""
    for component in plugins.components(TaskPoolSpec) if names else ():
        spec = component.spec
        if spec.name in names or set(names) <= set(spec.tasks):
            yield f"For the tasks of {spec.name}, add: --task-pool {spec.name}"
