"""Draw the chart of the how-to page on choosing a method from committed figures.

Run as `python benchmarks/guide_charts.py`. `nox -s results` draws them as well.
The chart is narrow, so that its text is readable on a phone, and white, so that it is readable in
dark mode.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

    Runs = Mapping[str, Mapping[str, Any]]

DOCS = Path(__file__).parents[1] / "docs"
HOW_TO = DOCS / "how-to"
#: The methods of the page on choosing, by their names in `results.json`, with their names there.
STRONG = "strong"
SHOWN = {
    STRONG: "strong",
    "adamerging, preset strong": "adamerging, strong",
    "surgery": "task-arithmetic,surgery",
    "featcal": "task-arithmetic,featcal",
    "svc": "task-arithmetic,svc",
    "consensus, task_masks": "consensus, masks",
} | {
    name: name
    for name in (
        *("emr", "symerge", "tsv-m,featcal", "tsv-m", "lot", "cart", "ace", "regmean-plus-plus"),
        *("iso-c", "iso-cts", "adamerging", "regmean", "task-arithmetic", "cat", "consensus"),
        *("ties", "fisher", "simple-average", "wudi"),
    )
}
GROUPS = {
    "weights alone": "#616e7c",
    "learns from unlabeled images": "#2f855a",
    "needs the task at inference": "#b7791f",
}
TEXT, FAINT = "#1f2933", "#cbd2d9"
#: The style of a value next to its dot, which hides the lines behind it.
VALUE: dict[str, Any] = {
    "va": "center",
    "size": 10,
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.8},
}


def draw_methods(runs: Runs, path: Path) -> None:
    """Draw one dot per method: the mean over tasks and seeds in percent of the experts."""
    shares = {name: _shares(runs[name]) for name in SHOWN}
    order = sorted(SHOWN, key=lambda name: statistics.mean(shares[name]))
    figure, axes = _new_chart(height=6.4)
    for row, name in enumerate(order):
        color, share = GROUPS[_group(runs[name])], statistics.mean(shares[name])
        axes.plot([0, share], [row, row], color=FAINT, linewidth=0.8, zorder=1)
        axes.plot([min(shares[name]), max(shares[name])], [row, row], color=color, linewidth=2)
        axes.plot(share, row, "o", color=color, markersize=7)
        axes.text(share + 1.8, row, f"{share:.0f}", color=color, **VALUE)
    axes.set_yticks(range(len(order)), [SHOWN[name] for name in order], color=TEXT)
    axes.get_yticklabels()[order.index(STRONG)].set_weight("bold")
    axes.set_xlim(50, 107)
    axes.set_xlabel("score of one merged model, in % of its eight experts", color=TEXT, x=0.3)
    axes.set_ylim(-0.7, len(order) - 0.3)
    _mark(axes, _base_share(runs), "base", rows=len(order))
    _mark(axes, 100, "experts", rows=len(order))
    for label, color in GROUPS.items():
        axes.plot([], [], "o", color=color, label=label)
    figure.legend(loc="outside upper left", frameon=False, labelcolor=TEXT)
    _save(figure, path)


def _shares(run: Mapping[str, Any]) -> list[float]:
    return [100 * seed["normalised_average"] for seed in run["seeds"].values()]


def _base_share(runs: Runs) -> float:
    seeds = runs["simple-average"]["seeds"].values()
    return statistics.mean(100 * seed["base"] / seed["experts"] for seed in seeds)


def _group(run: Mapping[str, Any]) -> str:
    weights, examples, task = GROUPS
    if next(iter(run["seeds"].values()))["needs_task"]:
        return task
    return weights if run["data"] == "none" else examples


def _new_chart(height: float) -> tuple[Any, Axes]:
    mpl.rcParams.update({"svg.hashsalt": "guide", "svg.fonttype": "none", "font.size": 11})
    figure, axes = plt.subplots(figsize=(4.8, height), layout="constrained")
    axes.tick_params(length=0, colors=TEXT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines[:].set_color(FAINT)
    return figure, axes


def _mark(axes: Axes, share: float, label: str, *, rows: int) -> None:
    axes.axvline(share, color=TEXT, linewidth=1, linestyle=":")
    axes.text(share, rows - 0.25, label, ha="center", va="bottom", color=TEXT, size=10)


def _save(figure: Any, path: Path) -> None:  # noqa: ANN401 - matplotlib's
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


def main() -> None:
    """Draw the chart from the committed figures."""
    runs = json.loads((DOCS / "reference" / "results.json").read_text())
    draw_methods(runs, HOW_TO / "methods.svg")


if __name__ == "__main__":
    main()
