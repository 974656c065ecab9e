"""`fuse list algorithms`: algorithms by family and stage, with their needs and cost."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, get_args

from fusion_core.cli.output import print_groups
from fusion_core.contracts.specs import COSTS, STAGES, AlgorithmSpec, PipelineSpec, TaskData

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core.plugins.components import Component
    from fusion_core.plugins.manager import PluginManager

_RANKS = {cost: rank for rank, cost in enumerate([*COSTS, None])}
_DATA = get_args(TaskData)
_PIPELINE, _PIPELINE_FAMILY = "pipeline", "named pipelines, run like a merge"
_STAGES = [*STAGES, _PIPELINE]
_HEADINGS = ["name", "needs", "experts", "cost", "reference", "summary"]


def describe_algorithms(plugins: PluginManager) -> list[dict[str, Any]]:
    """Describe all algorithms and pipelines, by family from the cheapest on, and by stage."""
    rows = [_describe_algorithm(component) for component in plugins.components(AlgorithmSpec)]
    rows += [_describe_pipeline(component, rows) for component in plugins.components(PipelineSpec)]
    cheapest: dict[str, int] = {}
    for row in rows:
        rank = _RANKS[row["cost"]]
        cheapest[row["family"]] = min(rank, cheapest.get(row["family"], rank))

    def order(row: Mapping[str, Any]) -> tuple[Any, ...]:
        family, stage = row["family"], _STAGES.index(row["stage"])
        return cheapest[family], family, stage, row["name"], row["plugin"]

    return sorted(rows, key=order)


def print_algorithms(algorithms: Sequence[Mapping[str, Any]]) -> None:
    """Print the result of `describe_algorithms`, with a legend."""
    grouped = groupby(algorithms, _title)
    print_groups(_HEADINGS, {title: [*map(_cells, group)] for title, group in grouped})
    print("\nneeds: the base; unlabeled or labeled examples of the tasks; the task, at inference")
    print("cost, from the cheapest on")
    for cost, meaning in COSTS.items():
        print(f"  {cost:10}{meaning}")
    print("fuse info NAME shows an algorithm's formula, its options and an example.")


def _describe_algorithm(component: Component[AlgorithmSpec]) -> dict[str, Any]:
    spec = component.spec
    return {
        "name": spec.name,
        "family": spec.family or component.plugin.distribution,
        "stage": spec.stage,
        "summary": spec.summary,
        "formula": spec.formula,
        "needs_base": spec.needs_base,
        "needs_tasks": spec.needs_tasks,
        "needs_task": spec.needs_task,
        "min_experts": spec.min_experts,
        "max_experts": spec.max_experts,
        "cost": spec.cost,
        "reference": spec.reference,
        "plugin": component.plugin.distribution,
    }


def _describe_pipeline(
    component: Component[PipelineSpec], algorithms: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Describe a pipeline by the needs of those of its stages that are installed."""
    spec = component.spec
    names = [name for name, _ in spec.stages]
    stages = [stage for stage in algorithms if stage["name"] in names]
    limits = [stage["max_experts"] for stage in stages if stage["max_experts"] is not None]
    return {
        "name": spec.name,
        "family": _PIPELINE_FAMILY,
        "stage": _PIPELINE,
        "stages": names,
        "summary": spec.summary,
        "formula": None,
        "needs_base": any(stage["needs_base"] for stage in stages),
        "needs_tasks": max(
            (stage["needs_tasks"] for stage in stages), key=_DATA.index, default="none"
        ),
        "needs_task": any(stage["needs_task"] for stage in stages),
        "min_experts": max((stage["min_experts"] for stage in stages), default=1),
        "max_experts": min(limits, default=None),
        "cost": max((stage["cost"] for stage in stages), key=_RANKS.__getitem__, default=None),
        "reference": spec.reference,
        "plugin": component.plugin.distribution,
    }


def _title(row: Mapping[str, Any]) -> str:
    if row["stage"] == _PIPELINE:
        return _PIPELINE_FAMILY
    return f"{row['family']}: {STAGES[row['stage']].heading}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    needs = ["base"] * row["needs_base"] + [row["needs_tasks"]] * (row["needs_tasks"] != "none")
    needs += ["task"] * row["needs_task"]
    least, most = row["min_experts"], row["max_experts"]
    if most is None:
        experts = f"{least}+" if least > 1 else ""
    else:
        experts = str(most) if least == most else f"{least}-{most}"
    cells = (row["name"], ", ".join(needs), experts, row["cost"], row["reference"])
    return [*(cell or "" for cell in cells), row["summary"]]
