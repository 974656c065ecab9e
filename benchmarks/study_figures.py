"""Draw the figures of the report: accuracy by learner, and against examples and steps."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from study_cases import COUNTS as FEW_COUNTS
from study_cases import FINER, REPORTED
from study_page import COUNTS, LEARNERS, STEPS, STRONG, Study, few, limited, whole

if TYPE_CHECKING:
    from pathlib import Path

_COLOURS = dict(zip(LEARNERS, ("#777777", "#d62728", "#9467bd", "#1f77b4"), strict=True))


def draw(study: Study, folder: Path) -> None:
    """Draw accuracy by learner, and accuracy against examples and steps."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "study"  # the same file from the same figures
    figure, axes = plt.subplots(figsize=(8, 4))
    _draw_methods(study, axes)
    _save(figure, folder / "study-methods.svg")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
    _draw_examples(study, left)
    _draw_steps(study, right)
    _save(figure, folder / "study-examples.svg")


def _draw_methods(study: Study, axes: Any) -> None:  # noqa: ANN401 - matplotlib's
    learners = ("layer, teacher", *FINER, "all weights")
    for offset, before, colour in ((-0.2, "", "#9ecae1"), (0.2, "orthogonalise, ", "#08519c")):
        positions = [number + offset for number in range(len(learners))]
        means = [study.over(before + name, study.mean) for name in learners]
        heights = [statistics.mean(by_seed) for by_seed in means]
        spread = [statistics.stdev(by_seed) for by_seed in means]
        label = f"after {before.strip(', ')}" if before else "from task arithmetic"
        axes.bar(positions, heights, 0.36, yerr=spread, color=colour, label=label)
        for position, height in zip(positions, heights, strict=True):
            axes.annotate(f"{height:.1f}", (position, height + 0.6), ha="center", fontsize=7)
    experts = statistics.mean(study.mean("experts", seed) for seed in REPORTED)
    axes.axhline(experts, color="grey", linewidth=0.8)
    axes.annotate("experts", (-0.5, experts + 0.2), fontsize=7)
    axes.set_xticks(range(len(learners)), learners)
    axes.set(ylim=(75, 97), ylabel="average accuracy in %", xlabel="learned coefficients")
    axes.legend(loc="upper right", fontsize=8, ncols=2)


def _draw_examples(study: Study, axes: Any) -> None:  # noqa: ANN401 - matplotlib's
    for learner in (STRONG, *LEARNERS):
        points = [
            (count, statistics.mean(few(study, case)))
            for count in sorted({*COUNTS, *filter(None, FEW_COUNTS)})
            if set(REPORTED[:2]) <= set(study.seeds(case := limited(learner, count)))
        ]
        colour = _COLOURS.get(learner, "black")
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=learner)
    start = statistics.mean(few(study, "orthogonalise"))
    axes.axhline(start, color="grey", linewidth=0.8, linestyle="dashed")
    axes.annotate("without any data", (40, start - 1.6), fontsize=7)
    axes.set(xscale="log", xlabel="unlabeled examples per task", ylabel="average accuracy in %")
    ticks = COUNTS[:-1]  # 256 and 300 would overlap
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.legend(fontsize=8)


def _draw_steps(study: Study, axes: Any) -> None:  # noqa: ANN401 - matplotlib's
    for learner in ("layer", "row+column", "all weights"):
        cases = [whole(learner) if n == 100 else f"{n} steps: {learner}" for n in STEPS]
        heights = [statistics.mean(few(study, case)) for case in cases]
        axes.plot(STEPS, heights, "o-", color=_COLOURS[learner])
    axes.set(xscale="log", xlabel="steps (16 examples per task)")
    axes.set_xticks(STEPS, map(str, STEPS))
    axes.minorticks_off()


def _save(figure: Any, path: Path) -> None:  # noqa: ANN401 - matplotlib's
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
