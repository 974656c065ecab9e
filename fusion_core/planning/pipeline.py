"""The stages of a pipeline, planned: transforms, one merge, calibrations, and their tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.flow import Flow
from fusion_core.contracts.metrics import FILE as METRICS
from fusion_core.contracts.metrics import MetricsLog
from fusion_core.contracts.specs import STAGES
from fusion_core.contracts.stage import Coordinates, Stage
from fusion_core.errors import RecipeError
from fusion_core.planning.needs import sees_tasks
from fusion_core.planning.parts import Part, branch, check_overrides, join, parts_of
from fusion_core.planning.resolving import resolve_object
from fusion_core.weights.merging.piece import Bound

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.specs import AlgorithmSpec
    from fusion_core.planning.resolved import Resolved
    from fusion_core.plugins.manager import PluginManager
    from fusion_core.weights import WeightSource


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage of a run, with the parts that it works on."""

    stage: Stage[Any]
    #: None for an object of a class that no plugin registers
    resolved: Resolved[AlgorithmSpec] | None
    parts: tuple[Part, ...] = ()
    #: the name of the pipeline that it came with
    pipeline: str | None = None

    @property
    def kind(self) -> str:
        """A key of `STAGES`."""
        return self.stage.kind

    @property
    def name(self) -> str:
        """What to call it."""
        return "fused" if self.resolved is None else self.resolved.name

    @property
    def adapts(self) -> bool:
        """Whether it sees tasks."""
        if self.resolved is None:
            return self.stage.sees_tasks
        return sees_tasks(self.resolved.component.spec)

    def apply(self, flow: Flow, context: RunContext) -> Flow:
        """Apply the stage, part by part, and keep in the context what it saved and logged."""
        stage_context = self._context(flow, context)
        result = flow
        for part in self.parts:
            result = part.apply(result, stage_context)
        if stage_context.metrics.steps:
            stage_context.save(METRICS, stage_context.metrics.as_bytes())
        join(context, stage_context, prefix="" if self.kind == "merge" else f"{self.name}.")
        transforms = flow.transforms
        if self.kind == "transform":
            transforms = (*transforms, self.as_recipe(None))
        return replace(result, place=flow.place + 1, transforms=transforms)

    def _context(self, flow: Flow, context: RunContext) -> RunContext:
        """Return the stage's own context: tasks if it looks at them, a state and a log.

        Two stages that drop by chance do not drop the same, since each knows its place.
        """
        stage_context = branch(context)
        if not self.adapts:
            stage_context.tasks = None
        stage_context.transforms = flow.transforms
        stage_context.place, stage_context.stage = flow.place, self.name
        if self.adapts and stage_context.bound is Bound.TENSOR:
            stage_context.bound = Bound.MODEL
        if self.kind == "merge":
            return stage_context
        state = None
        if self.adapts and context.state is not None:
            state = context.state / f"stage-{flow.place}"
            state.mkdir(exist_ok=True)
        stage_context.state = state
        stage_context.metrics = MetricsLog(None if state is None else state / METRICS)
        return stage_context

    def as_provenance(self) -> dict[str, str | None]:
        """Say what it is, and whose."""
        plugin = None if self.resolved is None else self.resolved.component.plugin.distribution
        named = {} if self.pipeline is None else {"pipeline": self.pipeline}
        return {"name": self.name, "stage": self.kind, "plugin": plugin, **named}

    def as_recipe(self, folder: Path | None) -> dict[str, Any]:
        """Return its section of a recipe in `folder`."""
        return section_of(self.resolved, self.stage, folder)


def apply_stages(
    stages: Sequence[PlannedStage], pool: ModelPool[Any], context: RunContext
) -> WeightSource:
    """Return the lazy result of a pipeline on an aligned pool.

    Tensors that it leaves out are the base's or, without a base, the first expert's.
    """
    flow = Flow.of(pool)
    for stage in stages:
        flow = stage.apply(flow, context)
    return flow.merged


def section_of(
    resolved: Resolved[Any] | None,
    instance: Any,  # noqa: ANN401 - a stage or a pool
    folder: Path | None,
) -> dict[str, Any]:
    """Return the section of a recipe that says what a component is."""
    if resolved is not None:
        return resolved.as_recipe(folder)
    kind = type(instance)
    return {
        "name": f"{kind.__module__}:{kind.__qualname__}",
        **instance.config.model_dump(mode="json", context=folder),
    }


def create_stages(
    given: Sequence[tuple[Any, str | None]],
    resolved: Sequence[Resolved[AlgorithmSpec] | None],
    plugins: PluginManager,
) -> tuple[PlannedStage, ...]:
    """Make the stages that are not given as objects, in their order.

    `given` are stages with the names of their pipelines, as `expand_pipelines` returns them.
    Raises `RecipeError` for what is not a pipeline: any transforms, one merge, any calibrations.
    """
    described = iter(resolved)
    stages = tuple(
        PlannedStage(stage, resolve_object(stage, plugins))
        if isinstance(stage, Stage)
        else _created(next(described), pipeline)
        for stage, pipeline in given
    )
    _check_order(stages)
    _check_coordinates(stages)
    _check_for_tasks(stages)
    return stages


def _created(resolved: Resolved[AlgorithmSpec] | None, pipeline: str | None) -> PlannedStage:
    assert resolved is not None  # noqa: S101 - a recipe with a nameless stage was refused
    check_overrides(resolved)
    return PlannedStage(resolved.create(), resolved, pipeline=pipeline)


def _check_order(stages: Sequence[PlannedStage]) -> None:
    kinds = [each.kind for each in stages]
    said = ", ".join(f"{each.name} ({each.kind})" for each in stages)
    hint = f"The order is: {', '.join(STAGES)}; one stage merges. See: fuse list algorithms"
    if kinds.count("merge") != 1:
        count = "no stage merges" if "merge" not in kinds else "more than one stage merges"
        raise RecipeError(f"algorithm: {count}: {said}", hint=hint)
    if kinds != sorted(kinds, key=list(STAGES).index):
        raise RecipeError(f"algorithm: the stages are in another order: {said}", hint=hint)


def _check_coordinates(stages: Sequence[PlannedStage]) -> None:
    """Raise `RecipeError` for a search among models that are coordinates and not weights."""
    merge = merge_of(stages)
    spaces = [each.name for each in stages if isinstance(each.stage, Coordinates)]
    if spaces and merge.resolved is not None and merge.adapts:
        raise RecipeError(
            f"algorithm: {merge.name} looks at live models, and after {spaces[0]} there are none: "
            "it turns task vectors into coordinates",
            hint=f"Leave {spaces[0]} out, or follow it by a merge that looks at no tasks.",
        )


def _check_for_tasks(stages: Sequence[PlannedStage]) -> None:
    """Raise `RecipeError` where more than one stage gives tasks something for themselves."""
    names = [s.name for s in stages if s.resolved and s.resolved.component.spec.needs_task]
    if len(names) > 1:
        raise RecipeError(
            f"algorithm: {' and '.join(names)} each make a model that is another for every task",
            hint="Use one of them.",
        )


def merge_of(stages: Sequence[PlannedStage]) -> PlannedStage:
    """Return the stage that merges."""
    return next(each for each in stages if each.kind == "merge")


def with_parts(stages: Sequence[PlannedStage], pool: ModelPool[Any]) -> tuple[PlannedStage, ...]:
    """Share a pool's tensors out; what the merge leaves to the base, no other stage sees.

    Raises `RecipeError` for a pattern that matches nothing.
    """
    every = list(pool.reference.infos) if pool.by_name else []
    merge = merge_of(stages)
    parts = parts_of(merge.stage, merge.resolved, every, others=False)
    merged = [n for n in every if any(part.names is None or n in part.names for part in parts)]
    others = len(merged) < len(every)
    return tuple(
        replace(
            stage,
            parts=parts
            if stage is merge
            else parts_of(stage.stage, stage.resolved, merged, others=others),
        )
        for stage in stages
    )
