"""The table of results and its picture, from the figures of `results.py`."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Runs = Mapping[str, Mapping[str, Any]]

_HEAD = """# Results on mini8

Every method with its default options on the eight tasks of `mini8`, as `nox -s results` makes it
from `results.json`. Per cent of the test images, mean over three sets of experts (fine-tuning
seeds {seeds}) and, after ±, their standard deviation; a mean over tasks has a standard error of
0.6 from the number of images. The base has {base:.1f}, the experts have {experts:.1f}. Transforms
stand before `task-arithmetic`, calibrations after it, with defaults as well: many are meant for
another merge. *Data* is what a method looks at beside the weights; unlabeled images are not the
test images. Methods with a star need the task at inference: each task is measured with weights
of its own. Seconds are those of the merge on one core, without start-up and evaluation; the peak
of memory is that of the whole run, Python and torch included.

Nothing here was tuned: a default that is the paper's for CLIP may be far from the best for models
as tiny as these.

![accuracy against cost](results.svg)

| method | stage | average | of the experts | worst task | data | seconds | peak MB |
|---|---|---|---|---|---|---|---|
"""
_FEW = """
## Methods for one or two experts

On the first one or two of the tasks alone.
"""
_REASONS = """
## Where the reason is known

- `wudi`: its rate, 1e-5, is for task vectors with entries of about 1e-4. Those here are larger,
  and the descent moves the sum of eight, which is too far out, by a fifth of its length. With
  `lr: 1e-3` it has 79.0 on seed 3.
- `model-stock` is for experts of one task. Task vectors of different tasks are nearly at right
  angles, for which it answers: stay near the base.
- `truncate` scales what it keeps up to the whole nuclear norm, as STAR does before it takes the
  mean. In a sum with 0.3 that is too much. `orthogonalise`, the other way round, is made for a
  sum with 1.0, which is `tsv-m`.
- `simple-average`, `karcher`, `metagpt` and all that ends beside them: eight task vectors at
  right angles, averaged, are an eighth of each.
- `core-space` before a sum is the sum: it is for merges that choose entries, and for adapters.
- `passthrough` and `stack` merge nothing; they are here because every method is.
"""
TASKS = 8
#: What the literature finds, as (better, worse, by so many points).
ORDERINGS = (
    ("adamerging", "task-arithmetic", 2.0),
    ("task-arithmetic", "simple-average", 0.0),
    ("tsv-m", "ties", 2.0),
    ("iso-c", "ties", 2.0),
    ("regmean", "ties", 0.0),
    ("tsv-m", "task-arithmetic", 2.0),
    ("regmean", "simple-average", 2.0),
    ("fisher", "simple-average", 0.0),
)


def page(runs: Runs) -> str:
    """Return the page: methods by their average, the best first."""
    every = sorted(runs, key=lambda name: -mean(runs, name))
    names = [name for name in every if not _few(runs, name)]
    few = [name for name in every if _few(runs, name)]
    seeds = ", ".join(runs[names[0]]["seeds"])
    base, experts = _references(runs)
    head = _HEAD.format(seeds=seeds, base=base, experts=experts)
    rows = "".join(_row(runs, name) for name in names)
    return head + rows + _tasks(runs, names) + _said(runs) + _REASONS + _FEW + _tasks(runs, few)


def _few(runs: Runs, name: str) -> bool:
    """Tell whether a method takes fewer experts than there are tasks."""
    return len(next(iter(runs[name]["seeds"].values()))["tasks"]) < TASKS


def _references(runs: Runs) -> tuple[float, float]:
    """Return what the base and the experts have on average, in per cent."""
    every = [run for each in runs.values() for run in each["seeds"].values()]
    found = [run for run in every if len(run["tasks"]) == TASKS]
    base, experts = (statistics.mean(run[row] for run in found) for row in ("base", "experts"))
    return 100 * base, 100 * experts


def mean(runs: Runs, name: str) -> float:
    """Return a method's average over tasks and seeds, in per cent."""
    return statistics.mean(100 * run["average"] for run in runs[name]["seeds"].values())


def margins(runs: Runs, better: str, worse: str) -> list[float]:
    """Return by how many points one method is better than another, for each set of experts."""
    pairs = zip(runs[better]["seeds"].values(), runs[worse]["seeds"].values(), strict=True)
    return [100 * (one["average"] - other["average"]) for one, other in pairs]


def _row(runs: Runs, name: str) -> str:
    found = list(runs[name]["seeds"].values())
    share = statistics.mean(100 * run["normalised_average"] for run in found)
    worst = statistics.mean(100 * min(run["tasks"].values()) for run in found)
    seconds = statistics.median(run["seconds"] for run in found)
    peak = max(run["peak_mb"] for run in found)
    data = runs[name]["data"]
    data = data if data == "none" else f"{data} images"
    star = " *" if found[0]["needs_task"] else ""
    cells = [
        f"`{name}`{star}",
        runs[name]["stage"],
        _spread([100 * run["average"] for run in found]),
    ]
    cells += [f"{share:.1f} %", f"{worst:.1f}", data, f"{seconds:.1f}", str(peak)]
    return f"| {' | '.join(cells)} |\n"


def _spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _tasks(runs: Runs, names: list[str]) -> str:
    known = [next(iter(runs[name]["seeds"].values()))["tasks"] for name in names]
    tasks = list(dict.fromkeys(task for each in known for task in each))
    lines = [f"| method | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    for name in names:
        cells = (_cell(list(runs[name]["seeds"].values()), task) for task in tasks)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n" + "\n".join(lines) + "\n"


def _cell(found: list[Mapping[str, Any]], task: str) -> str:
    if task not in found[0]["tasks"]:
        return ""
    return f"{statistics.mean(100 * run['tasks'][task] for run in found):.1f}"


def _said(runs: Runs) -> str:
    """Say which orderings of the literature hold here, and by how much."""
    lines = ["| better | worse | wanted | margins by seed | |", "|---|---|---|---|---|"]
    for better, worse, wanted in ORDERINGS:
        if better in runs and worse in runs:
            found = margins(runs, better, worse)
            word = "holds" if min(found) >= wanted else "does not hold"
            listed = ", ".join(f"{each:+.1f}" for each in found)
            lines.append(f"| `{better}` | `{worse}` | {wanted:+.1f} | {listed} | {word} |")
    return "\n## What the literature finds\n\n" + "\n".join(lines) + "\n"


#: The points' colours, by what methods look at.
_COLOURS = {"weights alone": "#1f77b4", "unlabeled images": "#d62728", "the task, too": "#2ca02c"}


def picture(runs: Runs, path: Path) -> None:
    """Draw accuracy against seconds, a point a method, the best with their names."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "results"  # the same file from the same figures
    figure, axes = plt.subplots(figsize=(9, 6))
    points = {name: _point(runs, name) for name in runs if not _few(runs, name)}
    for kind, colour in _COLOURS.items():
        found = [points[name] for name in points if _kind(runs, name) == kind]
        axes.scatter(*zip(*found, strict=True), color=colour, s=14, label=kind)
    axes.set(xscale="log", xlabel="seconds of the merge (log)", ylabel="average accuracy in %")
    for level, name in zip(_references(runs), ("base", "experts"), strict=True):
        axes.axhline(level, color="grey", linewidth=0.8)
        axes.annotate(name, (1, level), xycoords=("axes fraction", "data"), fontsize=7)
    axes.legend(fontsize=7, loc="lower right")
    _name(axes, points)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")


def _point(runs: Runs, name: str) -> tuple[float, float]:
    seconds = statistics.median(run["seconds"] for run in runs[name]["seeds"].values())
    return seconds, mean(runs, name)


def _kind(runs: Runs, name: str) -> str:
    if next(iter(runs[name]["seeds"].values()))["needs_task"]:
        return "the task, too"
    return "weights alone" if runs[name]["data"] == "none" else "unlabeled images"


def _name(axes: Any, points: Mapping[str, tuple[float, float]]) -> None:  # noqa: ANN401
    """Write names beside points, the best first; one that would cover another is left out."""
    axes.figure.canvas.draw()
    taken: list[Any] = []
    for name in sorted(points, key=lambda name: -points[name][1]):
        text = axes.annotate(
            name, points[name], fontsize=7, xytext=(4, -2), textcoords="offset points"
        )
        box = text.get_window_extent()
        if any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)
