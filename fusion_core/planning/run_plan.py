"""The plan of a run, and what headers tell of its result."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.contracts.run import RunInfo
from fusion_core.contracts.treatments import Treatment
from fusion_core.errors import RecipeError
from fusion_core.planning.dtypes import describe_stored, infos_of_merge
from fusion_core.planning.fallbacks import Fallback, find_fallbacks
from fusion_core.planning.needs import check_data
from fusion_core.planning.outlines import has_own_outline
from fusion_core.planning.output_paths import free_paths
from fusion_core.planning.packed_tensors import PackedTensors, find_holdings
from fusion_core.planning.pipeline import PlannedStage, merge_of, merging_algorithm, section_of
from fusion_core.planning.tensor_groups import TensorGroup, group_tensors
from fusion_core.planning.trust import check_trusted, collect_needs
from fusion_core.plugins.formats import distributions_of_formats
from fusion_core.weights import CheckpointSource

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from datetime import date
    from pathlib import Path

    from fusion_core import hub
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.outline import Outline
    from fusion_core.contracts.output import OutputEncoder
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.planning.resolved_recipe import Resolved, ResolvedRecipe
    from fusion_core.planning.run_options import RunOptions
    from fusion_core.planning.trust import Needs
    from fusion_core.plugins.manager import PluginManager
    from fusion_core.weights.packing import Layout
    from fusion_core.weights.reading.assets import Files
    from fusion_core.weights.source import TensorInfo, WeightSource


@dataclass(frozen=True)
class Plan:
    """A validated run with created components; nothing is computed yet."""

    resolved: ResolvedRecipe
    plugins: PluginManager
    options: RunOptions
    stages: tuple[PlannedStage, ...]
    pool: ModelPool[Any]
    #: the tasks as the stages see them
    tasks: TaskPool[Any] | None
    #: the output directory; None if the run writes nothing
    path: Path | None
    device: torch.device
    #: the plans of nested recipes, by the names of the models that they replace
    nested: Mapping[str, Plan]
    #: the tasks before any stage changes them
    original_tasks: TaskPool[Any] | None
    #: the commits of the hub's revisions that planning has resolved, by reference
    commits: Mapping[str, str] = field(default_factory=dict)
    #: the day on which the oldest of them was looked up that the cache answered
    revisions_as_of: date | None = None

    # --- the recipe ----------------------------------------------------------------------------

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe, with all defaults written out and without the output path."""
        return self.recipe_in(None)

    def recipe_in(self, folder: Path | None) -> dict[str, Any]:
        """Return the resolved recipe with paths relative to `folder`, or unchanged for None."""
        stages = [stage.as_recipe(folder) for stage in self.stages]
        sections: dict[str, Any] = {
            "algorithm": stages if len(stages) > 1 else stages[0],
            "model_pool": section_of(self.resolved.model_pool, self.pool, folder),
        }
        if self.tasks is not None:
            sections["task_pool"] = section_of(self.resolved.task_pool, self.tasks, folder)
        rest = self.resolved.recipe.model_dump(
            mode="json",
            include={"seed", "output", "alignment", *({"lock"} if self.is_locked else ())},
            exclude={"output": {"path", *self.resolved.recipe.output.forms}},
        )
        form = self.resolved.form
        if form is not None:
            options = form.as_recipe(folder)
            rest["output"][options.pop("name")] = options
        return {**sections, **rest}

    @property
    def is_locked(self) -> bool:
        """Whether the recipe accepts only inputs with recorded hashes."""
        return bool(self.resolved.recipe.lock.files)

    @property
    def algorithm_name(self) -> str:
        """The names of the stages, or of their pipelines, joined by hyphens."""
        groups = groupby(self.stages, key=attrgetter("pipeline"))
        return "-".join(
            pipeline or "-".join(stage.name for stage in stages) for pipeline, stages in groups
        )

    def free_paths(self) -> Iterator[Path]:
        """Yield output paths for a run that names none."""
        assert self.resolved.model_pool is not None  # noqa: S101 - runs of live models need a path
        stem = f"{self.resolved.model_pool.name}-{self.algorithm_name}"
        return free_paths(stem, self.recipe if self.options.resume else None)

    # --- the result ----------------------------------------------------------------------------

    @cached_property
    def encoder(self) -> OutputEncoder[Any] | None:
        """The encoder of the output's form; None for a full model."""
        return None if self.resolved.form is None else self.resolved.form.create()

    def read_output(self, directory: Path, pool: ModelPool[Any]) -> WeightSource:
        """Return the weights in a directory that the run wrote."""
        if self.encoder is None:
            return CheckpointSource(directory)
        return self.encoder.decode(directory, pool)

    @cached_property
    def aligned(self) -> ModelPool[Any]:
        """The aligned pool; raises `AlignmentError` if the models do not fit together.

        With nested recipes it has headers only: a run replaces them by their merges before it
        aligns the pool.
        """
        return self.pool.aligned(self.resolved.recipe.alignment)

    @cached_property
    def outline(self) -> Outline:
        """The outline of the merge; raises as `aligned` does."""
        return self.outline_of(self.aligned)

    def outline_of(self, pool: ModelPool[Any]) -> Outline:
        """Return the outline of the merge of an aligned pool."""
        return merging_algorithm(self.stages).outline(pool)

    @property
    def saves_task_masks(self) -> bool:
        """Whether the merge saves a mask of its entries for every task."""
        return merging_algorithm(self.stages).saves_task_masks

    @property
    def modules_file(self) -> str | None:
        """The file with modules that live models of the result have besides weights."""
        return merge_of(self.stages).modules_file

    def infos_of_merge(self, pool: ModelPool[Any]) -> Mapping[str, TensorInfo]:
        """Describe the merge of an aligned pool as computed, for use as a model."""
        return infos_of_merge(self.outline_of(pool), pool, self.dtype)

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype in which the recipe stores the merge; None for the models' dtypes."""
        name = self.resolved.recipe.output.dtype
        return None if name is None else getattr(torch, name)

    @property
    def stored_infos(self) -> Mapping[str, TensorInfo]:
        """The tensors of the merge as stored; raises as `aligned` does."""
        return describe_stored(self.outline, self.dtype)

    def assets(self, dtype: torch.dtype | None) -> Files:
        """Return the side files of the merge, given the dtype of its weights."""
        return self.outline.files(self.aligned.assets(dtype=dtype))

    @cached_property
    def layout(self) -> Layout:
        """The positions of matrices in tensors; raises `BrokenPluginError` for invalid ones."""
        return self.aligned.layout

    @cached_property
    def fallbacks(self) -> tuple[Fallback, ...]:
        """The tensors that a stage's method does not apply to."""
        return tuple(find_fallbacks(self.stages, self.aligned.reference.infos, self.layout))

    @property
    def holdings(self) -> tuple[PackedTensors, ...]:
        """The tensors that are merged matrix by matrix."""
        return tuple(find_holdings(self.layout))

    @property
    def groups(self) -> tuple[TensorGroup, ...]:
        """All tensors of the result, grouped by name and by how the merge treats them.

        Empty if the result has other tensors than the models.
        """
        infos = self.aligned.reference.infos
        if not self.outline.is_like(infos):
            return ()
        parts = merge_of(self.stages).parts
        as_in_base = Treatment("copy", "the base's: no expert has it")
        untouched = dict.fromkeys(self.aligned.untouched, as_in_base)
        treatments = {**untouched, **self.aligned.treatments}
        return tuple(group_tensors(parts, infos, self.layout, treatments))

    @property
    def skipped(self) -> frozenset[str]:
        """The tensors that the merge leaves to the base."""
        names = self.pool.reference.infos
        parts = merge_of(self.stages).parts
        merged = (names if part.names is None else part.names for part in parts)
        return frozenset(names).difference(*merged)

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of merged, copied and dropped tensors."""
        return count_tensors(self.aligned, self.outline, skipped=self.skipped)

    @property
    def warnings(self) -> list[str]:
        """Differences that alignment accepted, and notable fallbacks; of nested recipes, too.

        Each warning appears once and names the nested recipes that it concerns.
        """
        recipes: dict[str, list[str]] = {}
        for recipe, warning in self._list_warnings():
            recipes.setdefault(warning, []).append(recipe)
        warnings = []
        for warning, (first, *others) in recipes.items():
            also = f" (also in {', '.join(recipe.rstrip('/') for recipe in others)})"
            warnings.append(f"{first}{warning}{also if others else ''}")
        return warnings

    def _list_warnings(self) -> Iterator[tuple[str, str]]:
        """Yield the path of a nested recipe, such as `outer/inner/`, with each of its warnings."""
        yield from (("", warning) for warning in self.aligned.warnings)
        yield from (("", str(fallback)) for fallback in self.fallbacks if fallback.is_notable)
        for stage in self.stages:
            if stage.resolved is not None:
                unmatched = stage.resolved.selection.find_unmatched(self.pool.reference.infos)
                yield from (("", warning) for warning in unmatched)
        for name, plan in self.nested.items():
            inner = plan._list_warnings()  # noqa: SLF001 - of this class
            yield from ((f"{name}/{path}", warning) for path, warning in inner)

    @property
    def licence(self) -> str | None:
        """The licence of the pool's models, if its spec names one instead of describing it."""
        pool = self.resolved.model_pool
        licence = None if pool is None else pool.component.spec.licence
        return None if licence is None or " " in licence else licence

    @cached_property
    def cards(self) -> dict[str, dict[str, Any]]:
        """The facts of the models' cards, by model; see `RunInfo.cards`.

        A model whose card is unknown has the licence that the pool's spec names, if any.
        """
        known = self.pool.cards()
        default = {} if self.licence is None else {"licence": self.licence}
        cards: dict[str, dict[str, Any]] = {}
        for name in self.pool.by_name:
            if name in self.nested:
                nested = self.nested[name].cards
                cards |= {f"{name}/{model}": card for model, card in nested.items()}
            else:
                cards[name] = {**default, **known.get(name, {})}
        return cards

    @property
    def info(self) -> RunInfo:
        """The description of the run for hooks."""
        return RunInfo(self.recipe, self.path, self.cards)

    # --- the tasks -----------------------------------------------------------------------------

    @property
    def adapts(self) -> bool:
        """Whether a stage uses tasks."""
        return any(stage.adapts for stage in self.stages)

    @property
    def transductive(self) -> bool | None:
        """Whether a stage adapts on the measured examples; None if no stage adapts."""
        stages = [self.tasks.transductive] if self.adapts and self.tasks is not None else []
        nested = [plan.transductive for plan in self.nested.values()]
        answers = [answer for answer in (*stages, *nested) if answer is not None]
        return any(answers) if answers else None

    @property
    def used_tasks(self) -> TaskPool[Any] | None:
        """The tasks; None if nothing reads them."""
        return self.tasks if self.adapts or self.options.evaluate else None

    @property
    def data(self) -> dict[str, Any]:
        """The identity of each used task's data; a task of a nested recipe is `nested/task`."""
        tasks = self.used_tasks
        data = {} if tasks is None else dict(tasks.inputs())
        for name, nested in self.nested.items():  # which are merged and not measured
            inner = replace(nested, options=replace(nested.options, evaluate=False)).data
            data |= {f"{name}/{task}": identity for task, identity in inner.items()}
        return data

    @property
    def trusted_tasks(self) -> TaskPool[Any] | None:
        """The tasks that can be read without trust; None if nothing reads them."""
        return None if collect_needs([self.resolved.task_pool]) else self.used_tasks

    def check_builds(self) -> None:
        """Raise a `FusionError` if the pool cannot build the models to evaluate."""
        self.pool.check_builds()
        if self.pool.builds_any_depth or not has_own_outline(self.stages):
            return
        if self.outline.is_like(self.aligned.reference.infos):
            return
        kind = section_of(self.resolved.model_pool, self.pool, None)["name"]
        raise RecipeError(
            f"the pool {kind!r} builds models with the tensors of its own, and the result of "
            f"{self.algorithm_name} has others: it cannot be evaluated",
            hint="Leave the tasks out.",
        )

    def check_data(self, *, untrusted: bool = False) -> None:
        """Raise a `FusionError` that names plugin and task for missing task data.

        With `untrusted`, skip tasks that need trust.
        """
        tasks = self.trusted_tasks if untrusted else self.used_tasks
        if tasks is not None:
            component = self.resolved.task_pool
            plugin = (
                component.component.plugin.distribution if component else type(self.tasks).__name__
            )
            check_data(tasks, plugin)
        for plan in self.nested.values():
            plan.check_data(untrusted=untrusted)

    # --- the components ------------------------------------------------------------------------

    def downloads(self) -> list[hub.FileRequest]:
        """Return the hub files that the run reads."""
        tasks = self.used_tasks
        return [*self.pool.downloads(), *(() if tasks is None else tasks.downloads())]

    def components_used(self) -> Iterator[Resolved[Any] | None]:
        """Yield the components of this recipe and of nested ones, without executors."""
        yield from (stage.resolved for stage in self.stages)
        yield self.resolved.task_pool if self.used_tasks is not None else None
        yield self.resolved.form
        yield from self.components_of_models()

    def components_of_models(self) -> Iterator[Resolved[Any] | None]:
        """Yield the model pool and the components of nested recipes."""
        yield self.resolved.model_pool
        for plan in self.nested.values():
            yield from plan.components_used()

    @property
    def needs_trust(self) -> Needs:
        """The actions that need trust, by name, nested recipes included."""
        return collect_needs([self.resolved.executor, *self.components_used()])

    def check_trust(self) -> None:
        """Raise `RecipeError` for missing trust; call it before carrying out the plan."""
        check_trusted(self.needs_trust, self.options.trust)

    @property
    def distributions(self) -> set[str]:
        """The distributions of the plugins that the run uses."""
        stages = (stage.resolved for stage in self.stages)
        resolved = self.resolved
        components = (*stages, resolved.model_pool, resolved.task_pool, resolved.form)
        plugins = {used.component.plugin.distribution for used in components if used is not None}
        formats = distributions_of_formats(self.pool.by_name.values(), self.plugins)
        return plugins.union(formats, *(plan.distributions for plan in self.nested.values()))


def count_tensors(
    pool: ModelPool[Any], merged: WeightSource | Outline, *, skipped: Collection[str] = ()
) -> dict[str, int]:
    """Count the tensors of an aligned pool by treatment.

    They are merged, copied (integers and `skipped`), or dropped by the alignment policy.
    """
    floating = sum(
        info.dtype.is_floating_point and name not in skipped for name, info in merged.infos.items()
    )
    copied = len(merged.infos) - floating
    return {"merged": floating, "copied": copied, "dropped": len(pool.dropped)}
