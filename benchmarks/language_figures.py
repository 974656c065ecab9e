"""Draw the figure of the report on language models: tasks against what is kept of the base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from language_cases import CELLS, COUNTS, EXPERTS, MANY, VARIANTS
from language_runs import same_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from language_runs import Runs

FIGURE = "language-models.svg"
_POOL = "four"
_COLOURS = {"strong": "#d62728", "base": "#777777"}
_OTHER = "#1f77b4"
#: Offsets in points and alignments of labels that would cover others.
_LABELS = {
    "base": ((-6, 8), "right"),
    "task-arithmetic": ((0, -22), "center"),
    "ties": ((8, -10), "left"),
    "tsv-m": ((0, 12), "right"),
    "tsv-m, scale 0.7": ((-4, 12), "right"),
    "doge": ((12, -4), "left"),
    "8 own, one adapter": ((8, -14), "left"),
    "32 of the experts": ((14, 8), "left"),
    "32 of the base": ((12, -4), "left"),
    "32 of another task": ((0, -18), "center"),
    "8 own": ((-8, -14), "right"),
    "8 own, short": ((-8, 6), "right"),
}


def draw(runs: Runs, folder: Path) -> None:
    """Draw the merges of four experts: means over seeds, and a dot per seed."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "language"  # the same file from the same figures
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name, cell in CELLS.items():
        seeds = runs.seeds(_POOL, name)
        if not seeds or name in (*COUNTS, MANY, *VARIANTS):
            continue
        colour = _COLOURS.get(cell.method, _OTHER)
        (same, same_error), (right, right_error) = _point(runs, name, seeds)
        axes.errorbar(same, right, right_error, same_error, fmt="o", color=colour, capsize=2)
        for seed in seeds:
            (x, _), (y, _) = _point(runs, name, [seed])
            axes.plot(x, y, ".", color=colour, alpha=0.4)
        offset, align = _LABELS.get(name, ((6, 6), "left"))
        label = name if len(seeds) > 1 else f"{name} (seed {seeds[0]})"
        axes.annotate(
            label, (same, right), offset, textcoords="offset points", ha=align, fontsize=8
        )
    seeds = runs.seeds(_POOL, EXPERTS)
    experts = [run for of_seed in runs.general(_POOL, seeds, EXPERTS) for run in of_seed]
    shares = [same_tokens([[run]])[0] for run in experts]
    accuracy, _ = runs.accuracy(_POOL, seeds, EXPERTS)
    axes.plot(shares, [accuracy] * len(shares), "k|", markersize=12, label="single experts")
    axes.legend(loc="center right", fontsize=8)
    axes.axhline(accuracy, color="grey", linewidth=0.8, linestyle="dashed")
    axes.set(
        xlabel="answers to general prompts: tokens that the base would choose as well, in %",
        ylabel="accuracy on the tasks in %, experts each on their own",
    )
    figure.savefig(folder / FIGURE, metadata={"Date": None}, bbox_inches="tight")


def _point(
    runs: Runs, cell: str, seeds: Sequence[int]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the tokens that a merge shares with the base, and its accuracy, with errors."""
    return same_tokens(runs.general(_POOL, seeds, cell)), runs.accuracy(_POOL, seeds, cell)
