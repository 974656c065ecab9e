"""The planned stages of a pipeline: transforms, one merge, calibrations."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.algorithm import Algorithm
from fusion_core.contracts.flow import Flow
from fusion_core.contracts.metrics_log import METRICS_FILE as METRICS
from fusion_core.contracts.metrics_log import MetricsLog
from fusion_core.contracts.specs import STAGES
from fusion_core.contracts.stage import Coordinates, Stage
from fusion_core.errors import RecipeError
from fusion_core.planning.parts import (
    Average,
    Part,
    check_overrides,
    join_context,
    split_into_parts,
)
from fusion_core.planning.resolution import resolve_object
from fusion_core.recipe.per_expert import values_by_expert
from fusion_core.weights.merging.piece import Bound
from fusion_core.weights.reading.task_masks import MASKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.specs import AlgorithmSpec
    from fusion_core.planning.resolved_recipe import Resolved
    from fusion_core.plugins.manager import PluginManager
    from fusion_core.weights import WeightSource


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage of a run, with the parts that it is applied in."""

    stage: Stage[Any]
    #: None for an object of a class that no plugin registers
    resolved: Resolved[AlgorithmSpec] | None
    parts: tuple[Part, ...] = ()
    #: the name of the pipeline that contains it; None if the recipe lists it
    pipeline: str | None = None

    @property
    def kind(self) -> str:
        """The kind of stage, a key of `STAGES`."""
        return self.stage.kind

    @property
    def name(self) -> str:
        """The component's name, or "fused" for an unregistered class."""
        return "fused" if self.resolved is None else self.resolved.name

    @property
    def adapts(self) -> bool:
        """Whether the stage uses tasks."""
        if self.resolved is None:
            return self.stage.uses_tasks
        return self.resolved.component.spec.uses_tasks

    @property
    def modules_file(self) -> str | None:
        """The file with modules that the algorithm adds to live models of its result."""
        return None if self.resolved is None else self.resolved.component.spec.modules_file

    @property
    def changes_result(self) -> bool:
        """Whether the stage changes what the merge returns: a calibration, or a way back."""
        return self.kind == "calibrate" or isinstance(self.stage, Coordinates)

    def apply(self, flow: Flow, context: RunContext) -> Flow:
        """Apply the stage part by part; add its side files and metrics to the context."""
        stage_context = self._create_context(flow, context)
        result = flow
        for part in self.parts:
            result = part.apply(result, stage_context)
        if stage_context.metrics.steps:
            stage_context.save(METRICS, stage_context.metrics.as_bytes())
        join_context(context, stage_context, prefix="" if self.kind == "merge" else f"{self.name}.")
        transforms = flow.transforms
        if self.kind == "transform":
            transforms = (*transforms, {**self.as_recipe(None), **result.chosen})
        return replace(result, stage_index=flow.stage_index + 1, transforms=transforms, chosen={})

    def _create_context(self, flow: Flow, context: RunContext) -> RunContext:
        """Return the stage's context, with tasks only if it uses them, and its own state and log.

        Its index makes equal stages draw different random numbers.
        """
        stage_context = replace(context, side_files={})
        if not self.adapts:
            stage_context.tasks = None
        stage_context.transforms = flow.transforms
        stage_context.stage_index, stage_context.stage = flow.stage_index, self.name
        if self.adapts and stage_context.bound is Bound.TENSOR:
            stage_context.bound = Bound.MODEL
        if self.kind == "merge":
            return stage_context
        state = None
        if self.adapts and context.state is not None:
            state = context.state / f"stage-{flow.stage_index}"
            state.mkdir(exist_ok=True)
        stage_context.state = state
        stage_context.metrics = MetricsLog(None if state is None else state / METRICS)
        return stage_context

    def as_provenance(self) -> dict[str, str | None]:
        """Return the stage's name, kind, plugin and pipeline, for the provenance."""
        plugin = None if self.resolved is None else self.resolved.component.plugin.distribution
        named = {} if self.pipeline is None else {"pipeline": self.pipeline}
        return {"name": self.name, "stage": self.kind, "plugin": plugin, **named}

    def as_recipe(self, folder: Path | None) -> dict[str, Any]:
        """Return the stage's section for a recipe in `folder`."""
        return section_of(self.resolved, self.stage, folder)


def apply_stages(
    stages: Sequence[PlannedStage], pool: ModelPool[Any], context: RunContext
) -> WeightSource:
    """Return the lazy result of a pipeline on an aligned pool.

    Tensors that no stage is applied to are the base's, or the first expert's without a base.
    """
    flow = Flow.of(pool)
    for stage in stages:
        flow = stage.apply(flow, context)
        if stage.kind == "merge" and MASKS in context.side_files:
            _check_masks(stages)
    return flow.merged


def section_of(
    resolved: Resolved[Any] | None,
    instance: Any,  # noqa: ANN401 - a stage or a pool
    folder: Path | None,
) -> dict[str, Any]:
    """Return the section that describes a component, for a recipe in `folder`."""
    if resolved is not None:
        return resolved.as_recipe(folder)
    kind = type(instance)
    return {
        "name": f"{kind.__module__}:{kind.__qualname__}",
        **instance.config.model_dump(mode="json", context=folder),
    }


def create_stages(
    expanded: Sequence[tuple[Any, str | None]],
    resolved: Sequence[Resolved[AlgorithmSpec] | None],
    plugins: PluginManager,
) -> tuple[PlannedStage, ...]:
    """Return the stages of a pipeline; create those that are not given as objects.

    `expanded` is the result of `expand_pipelines`. `resolved` are the stages without objects.
    Raises `RecipeError` unless they are any transforms, one merge and any calibrations that suit
    each other.
    """
    remaining = iter(resolved)
    stages = []
    for section, pipeline in expanded:
        if isinstance(section, Stage):
            stages.append(PlannedStage(section, resolve_object(section, plugins)))
            continue
        component = next(remaining)
        assert component is not None  # noqa: S101 - a recipe with a nameless stage was refused
        check_overrides(component)
        stages.append(PlannedStage(component.create(), component, pipeline=pipeline))
    _check_order(stages)
    _check_coordinates(stages)
    if merging_algorithm(stages).saves_task_masks:
        _check_masks(stages)
    if merge_of(stages).modules_file is not None:
        _check_added_modules(stages)
    names = [s.name for s in stages if s.resolved and s.resolved.component.spec.needs_task]
    if len(names) > 1:
        raise RecipeError(
            f"algorithm: {' and '.join(names)} each make a different model for every task",
            hint="Use one of them.",
        )
    return tuple(stages)


def _check_order(stages: Sequence[PlannedStage]) -> None:
    kinds = [stage.kind for stage in stages]
    listed = ", ".join(f"{stage.name} ({stage.kind})" for stage in stages)
    hint = f"The order is: {', '.join(STAGES)}; one stage merges. See: fuse list algorithms"
    if kinds.count("merge") != 1:
        count = "no stage merges" if "merge" not in kinds else "more than one stage merges"
        raise RecipeError(f"algorithm: {count}: {listed}", hint=hint)
    if kinds != sorted(kinds, key=list(STAGES).index):
        raise RecipeError(f"algorithm: stages in the wrong order: {listed}", hint=hint)


def _check_coordinates(stages: Sequence[PlannedStage]) -> None:
    """Raise `RecipeError` for a merge that needs live models, after a change of coordinates."""
    merge = merge_of(stages)
    spaces = [stage.name for stage in stages if isinstance(stage.stage, Coordinates)]
    if spaces and merge.resolved is not None and merge.adapts:
        raise RecipeError(
            f"algorithm: {merge.name} looks at live models, and after {spaces[0]} there are none: "
            "it turns task vectors into coordinates",
            hint=f"Leave {spaces[0]} out, or follow it by a merge that looks at no tasks.",
        )


def _check_masks(stages: Sequence[PlannedStage]) -> None:
    """Raise `RecipeError` for stages that change a merge after its tasks' masks were made."""
    for stage in stages:
        if stage.changes_result:
            raise RecipeError(
                f"algorithm: {merge_of(stages).name} saves a mask per task, which selects entries "
                f"of its own result, and {stage.name} changes that result",
                hint=f"Leave {stage.name} out.",
            )


def _check_added_modules(stages: Sequence[PlannedStage]) -> None:
    """Raise `RecipeError` for stages around a merge that adds modules to live models."""
    merge = merge_of(stages)
    for stage in stages:
        if stage.kind == "calibrate" or isinstance(stage.stage, Coordinates):
            sees = "sees only the weights" if stage.kind == "calibrate" else "changes coordinates"
            raise RecipeError(
                f"algorithm: {merge.name} adds modules to live models, and {stage.name} {sees}",
                hint=f"Leave {stage.name} out.",
            )


def merge_of(stages: Sequence[PlannedStage]) -> PlannedStage:
    """Return the stage that merges."""
    return next(stage for stage in stages if stage.kind == "merge")


def merging_algorithm(stages: Sequence[PlannedStage]) -> Algorithm[Any]:
    """Return the algorithm of the stage that merges."""
    algorithm = merge_of(stages).stage
    assert isinstance(algorithm, Algorithm)  # noqa: S101 - its kind is "merge"
    return algorithm


def with_parts(stages: Sequence[PlannedStage], pool: ModelPool[Any]) -> tuple[PlannedStage, ...]:
    """Return the stages with a pool's tensors split into parts.

    Tensors that the merge leaves to the base, or that the pool keeps from the stages, are hidden
    from all of them. Raises `RecipeError` for a pattern that matches nothing, and for options whose
    values per expert do not fit the experts.
    """
    names = list(pool.reference.infos) if pool.by_name else []
    treatments = pool.treatments if names else {}
    offered = [name for name in names if name not in treatments]
    experts = [*pool.experts] if pool.by_name else []

    def split(stage: PlannedStage, offered: Sequence[str]) -> tuple[Part, ...]:
        with _name_stage(stage, stages):
            parts = split_into_parts(stage.stage, stage.resolved, offered, names, experts)
            for part in parts if experts else ():
                values_by_expert(part.algorithm.config, experts)
        return parts

    merge = merge_of(stages)
    parts = split(merge, offered)
    merged = [n for n in names if any(part.names is None or n in part.names for part in parts)]
    averaged = frozenset(n for n, treatment in treatments.items() if treatment.kind == "average")
    treated = (Part(Average(), averaged),) if averaged else ()
    return tuple(
        replace(stage, parts=(*parts, *treated) if stage is merge else split(stage, merged))
        for stage in stages
    )


@contextmanager
def _name_stage(stage: PlannedStage, stages: Sequence[PlannedStage]) -> Iterator[None]:
    """Name a stage of a pipeline in errors about its options."""
    try:
        yield
    except RecipeError as error:
        if len(stages) == 1:
            raise
        message = error.message.replace("algorithm.", f"algorithm.{stage.name}.")
        raise RecipeError(message, hint=error.hint) from error
