"""Draw the figure of the report on language models: tasks against what is kept of the base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from language_cases import CELLS, CHOSEN_ON
from language_page import EXPERTS, same_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from language_page import Runs

FIGURE = "language-models.svg"
_POOL = "four"
_COLOURS = {"strong": "#d62728", "base": "#777777"}
_OTHER = "#1f77b4"
#: Offsets in points and alignments of labels that would cover others.
_LABELS = {
    "base": ((-6, 8), "right"),
    "task-arithmetic": ((0, -14), "center"),
    "ties": ((6, -12), "left"),
    "32 of the experts": ((6, -12), "left"),
}


def draw(runs: Runs, folder: Path) -> None:
    """Draw every merge of four experts, on the seed on which all were measured."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "language"  # the same file from the same figures
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name, cell in CELLS.items():
        if (_POOL, CHOSEN_ON, name) not in runs:
            continue
        same, same_error = same_tokens(runs.general(_POOL, CHOSEN_ON, name))
        share, share_error = runs.share(_POOL, CHOSEN_ON, name)
        colour = _COLOURS.get(cell.method, _OTHER)
        axes.errorbar(same, share, share_error, same_error, fmt="o", color=colour, capsize=2)
        offset, align = _LABELS.get(name, ((6, 6), "left"))
        axes.annotate(name, (same, share), offset, textcoords="offset points", ha=align, fontsize=8)
    experts = runs.general(_POOL, CHOSEN_ON, EXPERTS).values()
    shares = [same_tokens(compared)[0] for compared in experts]
    axes.plot(shares, [100] * len(shares), "k|", markersize=12, label="single experts")
    axes.legend(loc="center right", fontsize=8)
    axes.axhline(100, color="grey", linewidth=0.8, linestyle="dashed")
    axes.set(
        xlabel="answers to general prompts: tokens that the base would choose as well, in %",
        ylabel="accuracy on the tasks in % of the experts",
    )
    figure.savefig(folder / FIGURE, metadata={"Date": None}, bbox_inches="tight")
