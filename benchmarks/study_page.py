"""Make the report's tables and figures from the runs of `study.py`."""

from __future__ import annotations

import re
import statistics
from typing import TYPE_CHECKING, Any

from study_cases import COUNTS as FEW_COUNTS
from study_cases import FINER, LOOKED_AT, METHODS, REPORTED

from pools_mini.plugin import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    Run = Mapping[str, Any]

PAGE = "finer-coefficients.md"
LEARNERS = ("layer", "row+column", "rank", "all weights")
COUNTS, STEPS, ADAPTED, NOISE = (1, 4, 8, 16, 64, 256, 300), (10, 30, 100), (2, 4), (0.5,)
_COLOURS = dict(zip(LEARNERS, ("#777777", "#d62728", "#9467bd", "#1f77b4"), strict=True))
STRONG = "strong"
PIPELINE = "orthogonalise, row+column"


class Study:
    """The runs by case and seed."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = {(run["case"], run["seed"]): run for run in runs}

    def mean(self, case: str, seed: int, tasks: Sequence[str] = TASKS) -> float:
        """Return the mean accuracy over tasks, in per cent."""
        accuracy = self.runs[case, seed]["accuracy"]
        return statistics.mean(accuracy[task] for task in tasks)

    def share(self, case: str, seed: int) -> float:
        """Return the share of the experts' accuracy on the same images, in per cent."""
        half = ", holdout" if case.endswith(", holdout") else ""
        return 100 * self.mean(case, seed) / self.mean(f"experts{half}", seed)

    def seeds(self, case: str) -> list[int]:
        """Return the seeds with runs of a case."""
        return sorted(seed for name, seed in self.runs if name == case)

    def over(self, case: str, value: Callable[[str, int], float]) -> list[float]:
        """Return a figure of a case for every seed."""
        return [value(case, seed) for seed in self.seeds(case)]


def write_page(runs: Sequence[Run], folder: Path) -> None:
    """Write the tables between their markers in the page, and draw the figures next to it."""
    study = Study(runs)
    path = folder / PAGE
    path.write_text(filled(path.read_text(encoding="utf-8"), study), encoding="utf-8")
    draw(study, folder)


def filled(text: str, study: Study) -> str:
    """Return the page with tables from the runs."""
    for name, rows in TABLES.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        table = "\n".join(rows(study))
        text = re.sub(f"{start}.*?{end}", f"{start}\n{table}\n\n{end}", text, flags=re.DOTALL)
    return text


def _methods(study: Study) -> Iterator[str]:
    yield "| learned | numbers | unlabeled images | of the experts | test images | held-out half |"
    yield "|---|---|---|---|---|---|"
    for name in METHODS:
        numbers = study.runs[name, REPORTED[0]]["numbers"]
        cells = [_spread(study.over(name, study.mean)), _mean(study.over(name, study.share))]
        for split in ("test", "holdout"):
            case = f"{name}, {split}"
            cells.append(_both(study, case) if study.seeds(case) else "")
        count = "" if name == "orthogonalise" else f"{numbers:,}"
        yield f"| {name} | {count} | {' | '.join(cells)} |"


def _both(study: Study, case: str) -> str:
    return f"{_mean(study.over(case, study.mean))} ({_mean(study.over(case, study.share))} %)"


def _strong(study: Study) -> Iterator[str]:
    """Yield the rows of the pipeline `strong` by the number of examples."""
    yield f"| examples per task | {' | '.join(f'seed {n}' for n in REPORTED)} | mean | of the experts |"
    yield "|---" * (len(REPORTED) + 3) + "|"
    cases = {"none: `tsv-m`": "orthogonalise"}
    cases |= {str(count or 300): f"{count or 300} examples: {STRONG}" for count in FEW_COUNTS}
    for name, case in cases.items():
        if study.seeds(case) == list(REPORTED):
            means = study.over(case, study.mean)
            cells = " | ".join(f"{mean:.1f}" for mean in means)
            share = _mean(study.over(case, study.share))
            yield f"| {name} | {cells} | {_mean(means)} | {share} % |"


def _examples(study: Study) -> Iterator[str]:
    yield f"| learned | {' | '.join(map(str, COUNTS))} |"
    yield "|---" * (len(COUNTS) + 1) + "|"
    for learner in (STRONG, *LEARNERS):
        cells = [
            _mean(_few(study, case)) if set(REPORTED[:2]) <= set(study.seeds(case)) else ""
            for case in (_limited(learner, count) for count in COUNTS)
        ]
        yield f"| {learner} | {' | '.join(cells)} |"


def _limited(learner: str, count: int) -> str:
    """Return the case of a learner with a number of examples per task."""
    is_whole = count == COUNTS[-1] and learner != STRONG
    return _whole(learner) if is_whole else f"{count} examples: {learner}"


def _whole(learner: str) -> str:
    """Return the case of a learner with all images, all tasks and 100 steps."""
    return f"orthogonalise, {learner}" + ", teacher" * (learner == "layer")


def _steps(study: Study) -> Iterator[str]:
    learners = [learner for learner in LEARNERS if learner != "rank"]
    yield f"| learned | {' | '.join(map(str, STEPS))} |"
    yield "|---" * (len(STEPS) + 1) + "|"
    for learner in learners:
        cases = [_whole(learner) if n == 100 else f"{n} steps: {learner}" for n in STEPS]
        cells = [_mean(_few(study, case)) for case in cases]
        yield f"| {learner} | {' | '.join(cells)} |"


def _few(study: Study, case: str) -> list[float]:
    """Return the means for the seeds that all side studies share."""
    return [study.mean(case, seed) for seed in REPORTED[:2]]


def _teachers(study: Study) -> Iterator[str]:
    yield "| learned | " + " | ".join(f"{n} tasks: these, others" for n in ADAPTED) + " |"
    yield "|---" * (len(ADAPTED) + 1) + "|"
    start = [
        f"{_part(study, 'orthogonalise', TASKS[:n])}, {_part(study, 'orthogonalise', TASKS[n:])}"
        for n in ADAPTED
    ]
    yield f"| nothing | {' | '.join(start)} |"
    for learner in ("layer", "row+column", "all weights"):
        cases = [(f"{n} tasks: {learner}", n) for n in ADAPTED]
        cells = [
            f"{_part(study, case, TASKS[:n])}, {_part(study, case, TASKS[n:])}" for case, n in cases
        ]
        yield f"| {learner} | {' | '.join(cells)} |"


def _part(study: Study, case: str, tasks: Sequence[str]) -> str:
    return _mean([study.mean(case, seed, tasks) for seed in REPORTED[:2]])


def _noise(study: Study) -> Iterator[str]:
    yield f"| learned | none | {' | '.join(map(str, NOISE))} |"
    yield "|---" * (len(NOISE) + 2) + "|"
    for learner in ("layer", "row+column", "all weights"):
        cases = (_whole(learner), *(f"noise {noise}: {learner}" for noise in NOISE))
        cells = [_mean(_few(study, case)) for case in cases]
        yield f"| {learner} | {' | '.join(cells)} |"


def _choice(study: Study) -> Iterator[str]:
    heads = " | ".join(f"seed {seed}" for seed in LOOKED_AT)
    yield f"| options | mean | {heads} |"
    yield "|---" * (len(LOOKED_AT) + 2) + "|"
    for case in dict.fromkeys(name for name, _ in study.runs if name.startswith("choice: ")):
        means = study.over(case, study.mean)
        cells = " | ".join(f"{mean:.1f}" for mean in means)
        yield f"| {case.removeprefix('choice: ')} | {_mean(means)} | {cells} |"


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f}"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


TABLES: dict[str, Callable[[Study], Iterator[str]]] = {
    "methods": _methods,
    "strong": _strong,
    "examples": _examples,
    "steps": _steps,
    "teachers": _teachers,
    "noise": _noise,
    "choice": _choice,
}


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
            (count, statistics.mean(_few(study, case)))
            for count in sorted({*COUNTS, *filter(None, FEW_COUNTS)})
            if set(REPORTED[:2]) <= set(study.seeds(case := _limited(learner, count)))
        ]
        colour = _COLOURS.get(learner, "black")
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=learner)
    start = statistics.mean(_few(study, "orthogonalise"))
    axes.axhline(start, color="grey", linewidth=0.8, linestyle="dashed")
    axes.annotate("without any data", (40, start - 1.6), fontsize=7)
    axes.set(xscale="log", xlabel="unlabeled examples per task", ylabel="average accuracy in %")
    ticks = COUNTS[:-1]  # 256 and 300 would overlap
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.legend(fontsize=8)


def _draw_steps(study: Study, axes: Any) -> None:  # noqa: ANN401 - matplotlib's
    for learner in ("layer", "row+column", "all weights"):
        cases = [_whole(learner) if n == 100 else f"{n} steps: {learner}" for n in STEPS]
        heights = [statistics.mean(_few(study, case)) for case in cases]
        axes.plot(STEPS, heights, "o-", color=_COLOURS[learner])
    axes.set(xscale="log", xlabel="steps (16 examples per task)")
    axes.set_xticks(STEPS, map(str, STEPS))
    axes.minorticks_off()


def _save(figure: Any, path: Path) -> None:  # noqa: ANN401 - matplotlib's
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
