"""Make the page of results and its picture from the figures of `results.py`."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Runs = Mapping[str, Mapping[str, Any]]

_HEAD = """# Results on mini8

This page compares every method, with its default options, on the eight tasks of `mini8`.
`nox -s results` makes it from `results.json`.

Accuracy is in per cent of the test images: the mean over three sets of experts (fine-tuning seeds
{seeds}) and, after ±, their standard deviation. The number of images gives a mean over tasks a
standard error of 0.6. The base has {base:.1f}, and the experts have {experts:.1f}.

- *stage*: transforms run before `task-arithmetic`, calibrations after it, all with their defaults.
  Many are meant for other merges.
- *data*: what a method needs besides the weights. Unlabeled images are not the test images.
- A star marks methods that need the task at inference. Each task is measured with its own weights.
- *seconds*: the merge on one core, without start-up and evaluation.
- *peak MB*: the memory of the whole run, including Python and torch.

Nothing was tuned here. A default from a paper on CLIP may be far from the best for models as tiny
as these.

![accuracy against cost](results.svg)

| method | stage | average | of the experts | worst task | data | seconds | peak MB |
|---|---|---|---|---|---|---|---|
"""
_LITERATURE = """
## Orderings known from the literature

A row holds if the margin, in points, reaches the minimum for each set of experts.

"""
_NEXT = """
Next: [how often diagnoses came true](diagnosis.md).
"""
_FEW = """
## Methods for one or two experts

These methods merge the first one or two tasks only.
"""
_REASONS = """
## Why some methods score low

- `wudi`: its rate, 1e-5, suits task vectors with entries of about 1e-4. The entries here are
  larger. The descent moves the sum of eight, which is too far from the base, by only a fifth of
  its length. With `lr: 1e-3` it reaches 79.0 on seed 3.
- `model-stock` is meant for experts of one task. Task vectors of different tasks are nearly
  orthogonal, and then it stays near the base.
- `truncate` scales the kept components up to the full nuclear norm, as STAR does before it takes
  the mean. For a sum with a scale of 0.3, that is too much. `orthogonalise` and `isotropise` are
  made for a sum with a scale of 1.0, which is `tsv-m` and `iso-cts`. So is `disentangle`.
- `simple-average`, `karcher`, `metagpt` and the methods near them average eight orthogonal task
  vectors, which leaves an eighth of each.
- `core-space` before a sum equals the sum. It is meant for merges that select entries, and for
  adapters.
- `passthrough` and `stack` do not merge. They are listed for completeness.
"""
TASKS = 8
#: Published orderings: better method, worse method, least margin in points.
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
    """Return the page, with methods sorted by average, the best first."""
    ranked = sorted(runs, key=lambda name: -mean(runs, name))
    names = [name for name in ranked if not _takes_few(runs, name)]
    few = [name for name in ranked if _takes_few(runs, name)]
    seeds = ", ".join(runs[names[0]]["seeds"])
    base, experts = _references(runs)
    head = _HEAD.format(seeds=seeds, base=base, experts=experts)
    rows = "".join(_row(runs, name) for name in names)
    parts = [head, rows, _tasks(runs, names), _orderings(runs), _REASONS]
    return "".join([*parts, _FEW, _tasks(runs, few), _NEXT])


def _takes_few(runs: Runs, name: str) -> bool:
    """Return whether a method takes fewer experts than there are tasks."""
    return len(next(iter(runs[name]["seeds"].values()))["tasks"]) < TASKS


def _references(runs: Runs) -> tuple[float, float]:
    """Return the average accuracy of the base and of the experts, in per cent."""
    all_runs = [run for method in runs.values() for run in method["seeds"].values()]
    full = [run for run in all_runs if len(run["tasks"]) == TASKS]
    base, experts = (statistics.mean(run[row] for run in full) for row in ("base", "experts"))
    return 100 * base, 100 * experts


def mean(runs: Runs, name: str) -> float:
    """Return a method's average over tasks and seeds, in per cent."""
    return statistics.mean(100 * run["average"] for run in runs[name]["seeds"].values())


def margins(runs: Runs, better: str, worse: str) -> list[float]:
    """Return the margin of one method over another in points, for each set of experts."""
    pairs = zip(runs[better]["seeds"].values(), runs[worse]["seeds"].values(), strict=True)
    return [100 * (one["average"] - other["average"]) for one, other in pairs]


def _row(runs: Runs, name: str) -> str:
    by_seed = list(runs[name]["seeds"].values())
    share = statistics.mean(100 * run["normalised_average"] for run in by_seed)
    worst = statistics.mean(100 * min(run["tasks"].values()) for run in by_seed)
    seconds = statistics.median(run["seconds"] for run in by_seed)
    peak = max(run["peak_mb"] for run in by_seed)
    data = runs[name]["data"]
    data = data if data == "none" else f"{data} images"
    star = " *" if by_seed[0]["needs_task"] else ""
    cells = [
        f"`{name}`{star}",
        runs[name]["stage"],
        _spread([100 * run["average"] for run in by_seed]),
    ]
    cells += [f"{share:.1f} %", f"{worst:.1f}", data, f"{seconds:.1f}", str(peak)]
    return f"| {' | '.join(cells)} |\n"


def _spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _tasks(runs: Runs, names: list[str]) -> str:
    measured = [next(iter(runs[name]["seeds"].values()))["tasks"] for name in names]
    tasks = list(dict.fromkeys(task for names_of_run in measured for task in names_of_run))
    lines = [f"| method | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    for name in names:
        cells = (_cell(list(runs[name]["seeds"].values()), task) for task in tasks)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n" + "\n".join(lines) + "\n"


def _cell(by_seed: list[Mapping[str, Any]], task: str) -> str:
    if task not in by_seed[0]["tasks"]:
        return ""
    return f"{statistics.mean(100 * run['tasks'][task] for run in by_seed):.1f}"


def _orderings(runs: Runs) -> str:
    """Return the table of published orderings, with their margins here."""
    lines = ["| better | worse | minimum | margins by seed | |", "|---|---|---|---|---|"]
    for better, worse, wanted in ORDERINGS:
        if better in runs and worse in runs:
            points = margins(runs, better, worse)
            verdict = "holds" if min(points) >= wanted else "does not hold"
            listed = ", ".join(f"{margin:+.1f}" for margin in points)
            lines.append(f"| `{better}` | `{worse}` | {wanted:+.1f} | {listed} | {verdict} |")
    return _LITERATURE + "\n".join(lines) + "\n"


#: The colour of a point, by the data that its method needs.
_COLOURS = {"weights alone": "#1f77b4", "unlabeled images": "#d62728", "the task, too": "#2ca02c"}


def picture(runs: Runs, path: Path) -> None:
    """Draw accuracy against seconds, one point per method, and name the best."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "results"  # the same file from the same figures
    figure, axes = plt.subplots(figsize=(9, 6))
    points = {name: _point(runs, name) for name in runs if not _takes_few(runs, name)}
    for kind, colour in _COLOURS.items():
        chosen = [points[name] for name in points if _kind(runs, name) == kind]
        axes.scatter(*zip(*chosen, strict=True), color=colour, s=14, label=kind)
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
    """Label the points, the best first; omit a label that would cover another."""
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
