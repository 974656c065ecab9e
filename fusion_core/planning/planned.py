"""A run that is ready: what it will do, said from headers, and nothing computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.matrices import layout_of
from fusion_core.errors import RecipeError
from fusion_core.planning.downloads import downloads_of
from fusion_core.planning.dtypes import dtype_of, infos_of_merge
from fusion_core.planning.fallbacks import Fallback, fallbacks_of
from fusion_core.planning.holdings import Holding, holdings_of
from fusion_core.planning.needs import check_data
from fusion_core.planning.numbers import free_paths
from fusion_core.planning.outlines import has_own_outline, outline_of
from fusion_core.planning.pipeline import PlannedStage, merge_of, section_of
from fusion_core.planning.trust import check_trusted, needs_of
from fusion_core.plugins.formats import distributions_of_formats

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    import torch

    from fusion_core import hub
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.outline import Outline
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.planning.options import RunOptions
    from fusion_core.planning.resolved import Resolved, ResolvedRecipe
    from fusion_core.planning.trust import Needs
    from fusion_core.plugins.manager import PluginManager
    from fusion_core.weights.packing import Layout
    from fusion_core.weights.reading.assets import Files
    from fusion_core.weights.source import TensorInfo, WeightSource


@dataclass(frozen=True)
class Plan:
    """A run that is ready: everything is validated and instantiated, nothing is computed."""

    resolved: ResolvedRecipe
    plugins: PluginManager
    options: RunOptions
    stages: tuple[PlannedStage, ...]
    pool: ModelPool[Any]
    tasks: TaskPool[Any] | None
    path: Path | None
    device: torch.device
    #: of the recipes in the places of models, by the models' names
    nested: Mapping[str, Plan]
    #: the tasks as no stage changes them
    every_task: TaskPool[Any] | None

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe: every default written out, the output's place left out."""
        return self.recipe_in(None)

    def recipe_in(self, folder: Path | None) -> dict[str, Any]:
        """Return it with paths as a recipe in `folder` names them; None leaves them as they are."""
        stages = [stage.as_recipe(folder) for stage in self.stages]
        sections: dict[str, Any] = {
            "algorithm": stages if len(stages) > 1 else stages[0],
            "model_pool": section_of(self.resolved.model_pool, self.pool, folder),
        }
        if self.tasks is not None:
            sections["task_pool"] = section_of(self.resolved.task_pool, self.tasks, folder)
        rest = self.resolved.recipe.model_dump(
            mode="json", include={"seed", "output", "alignment"}, exclude={"output": {"path"}}
        )
        return {**sections, **rest}

    @property
    def algorithm_name(self) -> str:
        """What to call the result."""
        groups = groupby(self.stages, key=attrgetter("pipeline"))
        return "-".join(
            pipeline or "-".join(stage.name for stage in stages) for pipeline, stages in groups
        )

    @cached_property
    def aligned(self) -> ModelPool[Any]:
        """The pool with models that fit; raises `AlignmentError` if they do not.

        From headers: a run reads it with merges in the places of recipes.
        """
        return self.pool.aligned(self.resolved.recipe.alignment)

    @cached_property
    def outline(self) -> Outline:
        """What the merge will look like; raises as `aligned` does."""
        return self.outline_of(self.aligned)

    def outline_of(self, pool: ModelPool[Any]) -> Outline:
        """Say what the merge of an aligned pool will look like."""
        return outline_of(self.stages, pool)

    def infos_of_merge(self, pool: ModelPool[Any]) -> Mapping[str, TensorInfo]:
        """Describe the merge of an aligned pool as it is computed, in the place of a model."""
        dtype = dtype_of(self.resolved.recipe.output.dtype)
        return infos_of_merge(self.outline_of(pool), pool, dtype)

    def assets(self, dtype: torch.dtype | None) -> Files:
        """Return the files beside the merge, whose weights are written in a dtype."""
        return self.outline.files(self.aligned.assets(dtype=dtype))

    def check_builds(self) -> None:
        """Raise a `FusionError` if the pool cannot build what is evaluated."""
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

    @property
    def warnings(self) -> list[str]:
        """What alignment let pass and a user should know, of nested recipes too; each once."""
        places: dict[str, list[str]] = {}
        for place, warning in self._warnings():
            places.setdefault(warning, []).append(place)
        return [
            f"{first}{warning}{_also_in(others)}" for warning, (first, *others) in places.items()
        ]

    def _warnings(self) -> Iterator[tuple[str, str]]:
        """Yield every warning with the path of the recipe that it concerns: `outer/inner/`."""
        yield from (("", warning) for warning in self.aligned.warnings)
        yield from (("", str(fallback)) for fallback in self.fallbacks if fallback.is_notable)
        for name, plan in self.nested.items():
            inner = plan._warnings()  # noqa: SLF001 - of this class
            yield from ((f"{name}/{place}", warning) for place, warning in inner)

    @cached_property
    def fallbacks(self) -> tuple[Fallback, ...]:
        """The tensors that a stage treats otherwise than its name says."""
        return tuple(fallbacks_of(self.stages, self.aligned.reference.infos, self.layout))

    @cached_property
    def layout(self) -> Layout:
        """Where matrices lie in tensors; raises `BrokenPluginError` for a pool that is wrong."""
        named, pool = self.resolved.model_pool, self.aligned
        label = type(pool).__name__ if named is None else repr(named.name)
        return layout_of(pool.reference.infos, pool.matrices, label)

    @property
    def holdings(self) -> tuple[Holding, ...]:
        """The tensors that are merged matrix by matrix."""
        return tuple(holdings_of(self.layout))

    @property
    def skipped(self) -> frozenset[str]:
        """The tensors that the merge leaves to the base."""
        names = self.pool.reference.infos
        parts = merge_of(self.stages).parts
        seen = (names if part.names is None else part.names for part in parts)
        return frozenset(names).difference(*seen)

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors are merged, copied and dropped."""
        return count_tensors(self.aligned, self.outline, skipped=self.skipped)

    @property
    def adapts(self) -> bool:
        """Whether a stage sees tasks."""
        return any(stage.adapts for stage in self.stages)

    @property
    def transductive(self) -> bool | None:
        """Whether a stage sees the examples that are measured on; None if no stage sees any."""
        own = [self.tasks.transductive] if self.adapts and self.tasks is not None else []
        within = [plan.transductive for plan in self.nested.values()]
        seen = [answer for answer in (*own, *within) if answer is not None]
        return any(seen) if seen else None

    def free_paths(self) -> Iterator[Path]:
        """Yield where the output of a run that names none may go."""
        assert self.resolved.model_pool is not None  # noqa: S101 - a pool of live models needs a name
        stem = f"{self.resolved.model_pool.name}-{self.algorithm_name}"
        return free_paths(stem, self.recipe if self.options.resume else None)

    @property
    def licence(self) -> str | None:
        """The licence that the pool's spec names for its models, not words on where it stands."""
        pool = self.resolved.model_pool
        named = None if pool is None else pool.component.spec.licence
        return None if named is None or " " in named else named

    @property
    def tasks_read(self) -> TaskPool[Any] | None:
        """The tasks, if anything looks at them."""
        return self.tasks if self.adapts or self.options.evaluate else None

    def downloads(self) -> list[hub.Wanted]:
        """Return what a run reads from the hub, sooner or later."""
        return downloads_of(self.pool, self.tasks_read)

    @property
    def needs_trust(self) -> Needs:
        """What the recipe asks for that can run code, by name, nested recipes included."""
        return needs_of([self.resolved.executor, *self.components_used()])

    def components_used(self) -> Iterator[Resolved[Any] | None]:
        """Yield what recipes name, the executor aside: that of a nested recipe is not used."""
        yield from (stage.resolved for stage in self.stages)
        yield self.resolved.task_pool if self.tasks_read is not None else None
        yield from self.components_of_models()

    def components_of_models(self) -> Iterator[Resolved[Any] | None]:
        """Yield what makes the models: the model pool, and what nested recipes name."""
        yield self.resolved.model_pool
        for plan in self.nested.values():
            yield from plan.components_used()

    def check_trust(self) -> None:
        """Raise `RecipeError` if the recipe needs trust that the options do not give.

        Called before anything of the plan is carried out: a plan itself starts nothing.
        """
        check_trusted(self.needs_trust, self.options.trust)

    @property
    def tasks_to_look_at(self) -> TaskPool[Any] | None:
        """The tasks that are read, unless looking at them needs trust."""
        return None if needs_of([self.resolved.task_pool]) else self.tasks_read

    def check_data(self, *, untrusted: bool = False) -> None:
        """Raise a `FusionError` naming plugin and task if data that is read later is not there.

        With `untrusted`, tasks that need trust are left alone: nothing is started.
        """
        tasks = self.tasks_to_look_at if untrusted else self.tasks_read
        if tasks is not None:
            given = self.resolved.task_pool
            plugin = given.component.plugin.distribution if given else type(self.tasks).__name__
            check_data(tasks, plugin)
        for plan in self.nested.values():
            plan.check_data(untrusted=untrusted)

    @property
    def distributions(self) -> set[str]:
        """The plugins that this run uses."""
        stages = (stage.resolved for stage in self.stages)
        found = (*stages, self.resolved.model_pool, self.resolved.task_pool)
        ours = {used.component.plugin.distribution for used in found if used is not None}
        formats = distributions_of_formats(self.pool.by_name.values(), self.plugins)
        return ours.union(formats, *(plan.distributions for plan in self.nested.values()))


def _also_in(places: list[str]) -> str:
    return f" (also in {', '.join(place.rstrip('/') for place in places)})" if places else ""


def count_tensors(
    pool: ModelPool[Any], merged: WeightSource | Outline, *, skipped: Collection[str] = ()
) -> dict[str, int]:
    """Account for every tensor of an aligned pool.

    Merged, copied (integers and `skipped`), or dropped by a policy.
    """
    floating = sum(
        info.dtype.is_floating_point and name not in skipped for name, info in merged.infos.items()
    )
    copied = len(merged.infos) - floating
    return {"merged": floating, "copied": copied, "dropped": len(pool.dropped)}
