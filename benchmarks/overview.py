"""Draw the chart of the README and the site from `results.json`: a few methods on mini8.

Run as `python benchmarks/overview.py`. `nox -s results` draws it as well.
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

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
#: Names in `results.json`, the best first, with the name on the command line.
METHODS = {
    "strong": "strong",
    "tsv-m,featcal": "tsv-m,featcal",
    "tsv-m": "tsv-m",
    "adamerging": "adamerging",
    "regmean": "regmean",
    "task-arithmetic": "task-arithmetic",
    "ties": "ties",
    "simple-average": "simple-average",
}
BEST, DATA, WEIGHTS, TEXT = "#0b5d43", "#2f855a", "#616e7c", "#1f2933"


def draw(runs: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw one bar per method: the mean over tasks and seeds in percent of the experts."""
    mpl.rcParams.update({"svg.hashsalt": "overview", "svg.fonttype": "none", "font.size": 11})
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    for row, (name, label) in enumerate(reversed(METHODS.items())):
        seeds = runs[name]["seeds"].values()
        share = statistics.mean(100 * run["normalised_average"] for run in seeds)
        with_data = runs[name]["data"] != "none"
        color = BEST if label == "strong" else DATA if with_data else WEIGHTS
        axes.barh(row, share, color=color, height=0.7)
        weight = "bold" if label == "strong" else "normal"
        inside = {"ha": "right", "va": "center", "color": "white", "weight": weight}
        axes.text(share - 0.8, row, f"{share:.1f}", **inside)
    axes.set_yticks(range(len(METHODS)), reversed(METHODS.values()), color=TEXT)
    axes.axvline(100, color=TEXT, linewidth=1, linestyle=":")
    axes.text(100.6, 0, "experts", ha="left", va="center", color=TEXT)
    axes.set_xlim(0, 110)
    axes.set_xlabel("score of one merged model, in % of its eight experts", color=TEXT)
    axes.tick_params(length=0, colors=TEXT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in (DATA, WEIGHTS)]
    labels = ["learns from unlabeled images", "weights alone"]
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


def main() -> None:
    """Draw the chart from the committed figures."""
    draw(json.loads((REFERENCE / "results.json").read_text()), REFERENCE / "overview.svg")


if __name__ == "__main__":
    main()
