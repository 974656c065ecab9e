"""The results of a merge's evaluation, as a model card and the hub's leaderboards show them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.commands import Intervals
from fusion_publish.card.outputs import repository_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion_core import Report
    from fusion_publish.card.outputs import MergeOutput

FOLDER = ".eval_results"
_SPLIT = "test"
_FRACTION = "fraction"


@dataclass(frozen=True)
class Result:
    """The main metric of one task."""

    task: str
    metric: str
    #: in per cent, if `unit` is "%"
    value: float
    unit: str
    #: the repository and commit of the data; None for data that is not on the hub
    data: str | None
    #: the number of test examples, and the ends of the 95 % interval; None without outcomes
    examples: int | None
    interval: tuple[float, float] | None
    #: how the data was used and measured, in words
    notes: str

    @property
    def dataset(self) -> str | None:
        """The repository of the data."""
        return None if self.data is None else self.data.rpartition("@")[0]

    @property
    def revision(self) -> str | None:
        """The commit of the data."""
        return None if self.data is None else self.data.rpartition("@")[2]


def list_results(output: MergeOutput) -> list[Result]:
    """Return the results of a merge, one per task; none without an evaluation."""
    report = output.report
    if report is None:
        return []
    evaluation = output.provenance.run.evaluation
    data = (evaluation.data if evaluation else {}) or output.provenance.tasks
    results = (_result(report, task, _find_data(data.get(task))) for task in report.tasks)
    return [result for result in results if math.isfinite(result.value)]


def eval_results(result: Result) -> list[dict[str, Any]] | None:
    """Return the content of a file of `.eval_results`; None for data that is not on the hub.

    The hub shows the entries of data sets that are registered as benchmarks. The format has no
    fields for the number of examples and the interval, so the notes state them.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    if result.dataset is None:
        return None
    entry = EvalResultEntry(
        dataset_id=result.dataset,
        task_id=result.task,
        value=result.value,
        dataset_revision=result.revision,
        notes=result.notes,
    )
    return eval_result_entries_to_yaml([entry])


def describe_adaptation(report: Report) -> str:
    """Say which examples the method adapted on."""
    if report.transductive is None:
        return "the method used no data"
    if report.transductive:
        return "the method adapted on the test examples, without their labels"
    return "the method adapted on examples that are not measured"


def _result(report: Report, task: str, data: str | None) -> Result:
    metrics, metric = report.tasks[task], report.main_metrics[task]
    factor = 100 if metric.unit == _FRACTION else 1
    interval = Intervals().of_task(metrics)
    ends = None if interval is None else (factor * interval[0], factor * interval[1])
    outcomes = getattr(metrics, "outcomes", None)
    count = None if outcomes is None else len(outcomes)
    unit = "%" if metric.unit == _FRACTION else metric.unit
    value = factor * float(metrics[metric.name])
    notes = _notes(report, unit, count, ends)
    return Result(task, metric.name, value, unit, data, count, ends, notes)


def _notes(report: Report, unit: str, count: int | None, ends: tuple[float, float] | None) -> str:
    parts = [f"{_SPLIT} split"]
    if count is not None:
        parts.append(f"{count} examples")
    if report.measured_on is not None:
        parts.append(f"measured on {report.measured_on}")
    if ends is not None:
        parts.append(f"95 % interval {ends[0]:.4g} to {ends[1]:.4g}{' %' if unit == '%' else ''}")
    return "; ".join([*parts, describe_adaptation(report)])


def _find_data(identity: object) -> str | None:
    """Return the repository and commit of a task's test data, if it is a single one."""
    measured = identity.get("test", identity) if isinstance(identity, dict) else identity
    repositories = set(_repositories(measured))
    return repositories.pop() if len(repositories) == 1 else None


def _repositories(value: object) -> Iterator[str]:
    match value:
        case str() if repository_of(value) is not None:
            yield value
        case dict():
            for item in value.values():
                yield from _repositories(item)
        case list():
            for item in value:
                yield from _repositories(item)
