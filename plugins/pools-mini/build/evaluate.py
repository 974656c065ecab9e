"""The table of all methods on all tasks, for one set of eight experts."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import adamerging
import merges
from model import State, accuracy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tasks import Task
    from torch import Tensor
    from transformers import CLIPModel

SCALES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
Row = dict[str, float]

# Merges with the framework's defaults, which must score between the base and the experts.
DEFAULTS = ("simple average", "task arithmetic 0.3", "ties mean 1")


def table(
    model: CLIPModel,
    heads: Mapping[str, Tensor],
    tasks: Sequence[Task],
    base: State,
    experts: Sequence[State],
    *,
    part: str = "test",
    full: bool = True,
) -> dict[str, Row]:
    """Return accuracies by method and task, with their ``mean``; print each row."""
    rows: dict[str, Row] = {}
    for name, weights in _merged(model, heads, tasks, base, experts, full=full):
        started = time.time()
        states = weights if isinstance(weights, list) else [weights] * len(tasks)
        rows[name] = {
            task.name: accuracy(model, heads, task, state, part=part)
            for task, state in zip(tasks, states, strict=True)
        }
        rows[name]["mean"] = sum(rows[name].values()) / len(tasks)
        print(_line(name, rows[name], time.time() - started), flush=True)
    return rows


def best_scale(rows: Mapping[str, Row]) -> float:
    """Return the best scale of task arithmetic on the table's split."""
    return max(
        (scale for scale in SCALES), key=lambda scale: rows[f"task arithmetic {scale:g}"]["mean"]
    )


def conditions(rows: Mapping[str, Row]) -> dict[str, float]:
    """Return mini8's conditions as margins in points; a negative margin is a violation."""
    mean = {name: row["mean"] for name, row in rows.items()}
    zero, top, gap = (
        mean["base"],
        mean["experts"],
        mean["experts"] - mean["simple average"],
    )
    layer, scales = mean["adamerging layer-wise"], [mean[f"task arithmetic {s:g}"] for s in SCALES]
    return {
        "base within 40-60": min(zero - 40, 60 - zero),
        "experts >= 92": top - 92,
        "average 15-30 below experts": min(gap - 15, 30 - gap),
        "default merges above base": min(mean[name] for name in DEFAULTS) - zero,
        "default merges below experts": top - max(mean[name] for name in DEFAULTS),
        "best scale interior": max(scales) - max(scales[0], scales[-1]),
        "layer-wise >= task-wise + 2": layer - mean["adamerging task-wise"] - 2,
        "layer-wise >= task arithmetic 0.3 + 2": layer - mean["task arithmetic 0.3"] - 2,
        "layer-wise >= best task arithmetic + 1": layer - max(scales) - 1,
        "regmean >= ties": mean["regmean"] - mean["ties mean 1"],
        "a spectral method >= ties": max(mean["tsv-m"], mean["iso-c"]) - mean["ties mean 1"],
    }


def standard_error(tasks: Sequence[Task], assumed: float = 75.0) -> float:
    """Return the standard error of a mean over tasks at ``assumed`` per cent."""
    share = assumed / 100
    variance = sum(share * (1 - share) / len(task.test) for task in tasks) / len(tasks) ** 2
    return 100 * math.sqrt(variance)


def _line(name: str, row: Row, seconds: float) -> str:
    cells = " ".join(f"{value:5.1f}" for value in row.values())
    return f"  {name:22s} {cells}  ({seconds:.0f} s)"


def _merged(
    model: CLIPModel,
    heads: Mapping[str, Tensor],
    tasks: Sequence[Task],
    base: State,
    experts: Sequence[State],
    *,
    full: bool,
) -> Iterator[tuple[str, State | list[State]]]:
    vectors = [merges.subtract(expert, base) for expert in experts]
    yield "base", base
    yield "experts", list(experts)
    yield "simple average", merges.average(base, vectors)
    for scale in SCALES:
        yield f"task arithmetic {scale:g}", merges.task_arithmetic(base, vectors, scale)
    for name, method in _static(full=full).items():
        yield name, method(base, vectors)
    yield "regmean", merges.regmean(model, base, vectors, tasks)
    for name, recipe in _recipes(full=full).items():
        yield name, adamerging.adamerge(model, heads, base, vectors, tasks, recipe)[0]


def _static(*, full: bool) -> dict[str, Callable[[State, Sequence[State]], State]]:
    methods: dict[str, Callable[[State, Sequence[State]], State]] = {
        "ties mean 1": merges.ties,
        "tsv-m": merges.tsv_m,
        "iso-c": merges.iso_c,
    }
    if full:
        methods["ties sum 0.3"] = lambda base, vectors: merges.ties(
            base, vectors, scale=0.3, combine="sum"
        )
        methods["ties sum 1"] = lambda base, vectors: merges.ties(base, vectors, combine="sum")
    return methods


def _recipes(*, full: bool) -> dict[str, adamerging.Recipe]:
    recipes = {
        "adamerging task-wise": adamerging.Recipe(layerwise=False),
        "adamerging layer-wise": adamerging.Recipe(),
    }
    if full:
        recipes["coefficients by labels"] = adamerging.Recipe(labels=True)
    return recipes
