"""The table of all merges on all tasks, for one set of experts, and its conditions."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import merges
from evaluate import score

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model import Encoder, State
    from tasks import Task
    from transformers import LlamaForCausalLM

Row = dict[str, float]
MEAN = "mean"
BETTER = ("ties", "tsv-m", "iso-c", "regmean")


def table(
    model: LlamaForCausalLM,
    encoder: Encoder,
    tasks: Sequence[Task],
    base: State,
    experts: Mapping[str, State],
) -> dict[str, Row]:
    """Return scores by merge and task, with the ``mean`` percentage of the experts' scores."""
    expert_scores = {task.name: score(model, encoder, task, experts[task.name]) for task in tasks}
    rows = {"experts": expert_scores | {MEAN: 100.0}}
    singles = [("base", base), *((f"expert {name}", weights) for name, weights in experts.items())]
    for name, weights in [*singles, *merges.merged(model, encoder, base, experts, tasks)]:
        started = time.time()
        row = {task.name: score(model, encoder, task, weights) for task in tasks}
        rows[name] = row | {MEAN: _share(row, expert_scores, tasks)}
        print(line(name, rows[name], time.time() - started), flush=True)
    return rows


def line(name: str, row: Row, seconds: float) -> str:
    """Format one row."""
    cells = " ".join(f"{row[column]:9.3f}" for column in row if column != MEAN)
    return f"  {name:22s} {cells} {row[MEAN]:8.1f}  ({seconds:.1f} s)"


def conditions(rows: Mapping[str, Row], tasks: Sequence[Task]) -> dict[str, float]:
    """Return lm-mini's conditions as margins in points; a negative margin is a violation."""
    mean = {name: row[MEAN] for name, row in rows.items()}
    scales = [mean[f"task arithmetic {scale:g}"] for scale in merges.SCALES]
    average, best, better = mean["simple average"], max(scales), max(mean[name] for name in BETTER)
    return {
        "each expert gains on its own task": min(_gain(rows, task, task) for task in tasks),
        "each expert loses on the others": min(-_foreign(rows, task, tasks) for task in tasks),
        "base < average": average - mean["base"],
        "average within 55-85": min(average - 55, 85 - average),
        "average < best task arithmetic": best - average,
        "best scale interior": best - max(scales[0], scales[-1]),
        "best task arithmetic <= the best of ties, tsv-m, iso-c, regmean": better - best,
        "the best merge < experts": 100 - max(better, best),
    }


def standard_error(tasks: Sequence[Task], assumed: float = 0.75) -> float:
    """Return the standard error of a mean over tasks at ``assumed``, in points."""
    counts = [len(task.test) for task in tasks if task.kind != "perplexity"]
    variance = sum(assumed * (1 - assumed) / count for count in counts) / len(tasks) ** 2
    return 100 * math.sqrt(variance)


def _share(row: Row, expert_scores: Row, tasks: Sequence[Task]) -> float:
    return 100 * sum(_ratio(row, expert_scores, task) for task in tasks) / len(tasks)


def _ratio(row: Row, expert_scores: Row, task: Task) -> float:
    part, whole = row[task.name], expert_scores[task.name]
    return whole / part if task.kind == "perplexity" else part / whole


def _gain(rows: Mapping[str, Row], expert: Task, task: Task) -> float:
    """Return an expert's gain over the base on a task, in points."""
    expert_scores, other = rows["experts"], rows[f"expert {expert.name}"]
    return 100 * (_ratio(other, expert_scores, task) - _ratio(rows["base"], expert_scores, task))


def _foreign(rows: Mapping[str, Row], expert: Task, tasks: Sequence[Task]) -> float:
    others = [task for task in tasks if task is not expert]
    return sum(_gain(rows, expert, task) for task in others) / len(others)
