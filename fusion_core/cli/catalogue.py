"""`fuse list algorithms`: methods by family and stage, with what they need and cost."""

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
_PIPELINE, _FAMILY = "pipeline", "named pipelines, run like a merge"
_HEADINGS = ["name", "needs", "experts", "cost", "reference", "summary"]


def algorithms_of(plugins: PluginManager) -> list[dict[str, Any]]:
    """Describe algorithms in the order of the catalogue: families from the cheapest on."""
    found = [_described(component) for component in plugins.components(AlgorithmSpec)]
    found += [_describe_pipeline(pipeline, found) for pipeline in plugins.components(PipelineSpec)]
    cheapest: dict[str, int] = {}
    for each in found:
        rank = _RANKS[each["cost"]]
        cheapest[each["family"]] = min(rank, cheapest.get(each["family"], rank))
    stages = [*STAGES, _PIPELINE]

    def place(each: Mapping[str, Any]) -> tuple[Any, ...]:
        family, stage = each["family"], stages.index(each["stage"])
        return cheapest[family], family, stage, each["name"], each["plugin"]

    return sorted(found, key=place)


def print_algorithms(algorithms: Sequence[Mapping[str, Any]]) -> None:
    """Print what `algorithms_of` returned, and how to read it."""
    grouped = groupby(algorithms, _title)
    print_groups(_HEADINGS, {title: [_row(each) for each in group] for title, group in grouped})
    print("\nneeds: the base; unlabeled or labeled examples of the tasks; the task, at inference")
    print("cost, from the cheapest on")
    for cost, meaning in COSTS.items():
        print(f"  {cost:10}{meaning}")
    print("fuse info NAME shows an algorithm's formula, its options and an example.")


def _described(component: Component[AlgorithmSpec]) -> dict[str, Any]:
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
    """Describe a pipeline by the needs of its stages, as far as these are installed."""
    spec = component.spec
    names = [name for name, _ in spec.stages]
    stages = [stage for stage in algorithms if stage["name"] in names]
    limits = [stage["max_experts"] for stage in stages if stage["max_experts"] is not None]
    return {
        "name": spec.name,
        "family": _FAMILY,
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


def _title(algorithm: Mapping[str, Any]) -> str:
    if algorithm["stage"] == _PIPELINE:
        return _FAMILY
    return f"{algorithm['family']}: {STAGES[algorithm['stage']].heading}"


def _row(each: Mapping[str, Any]) -> list[str]:
    needs = ["base"] * each["needs_base"] + [each["needs_tasks"]] * (each["needs_tasks"] != "none")
    needs += ["task"] * each["needs_task"]
    cells = (each["name"], ", ".join(needs), _experts(each), each["cost"], each["reference"])
    return [*(cell or "" for cell in cells), each["summary"]]


def _experts(each: Mapping[str, Any]) -> str:
    """Show how many experts it takes, nothing where it takes any number."""
    least, most = each["min_experts"], each["max_experts"]
    if most is None:
        return f"{least}+" if least > 1 else ""
    return str(most) if least == most else f"{least}-{most}"
