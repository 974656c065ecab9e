"""Make the report's tables from the runs of `study.py` and `study_few.py`."""

from __future__ import annotations

import json
import re
import statistics
from typing import TYPE_CHECKING, Any

from study_cases import COUNTS as FEW_COUNTS
from study_cases import LOOKED_AT, METHODS, REPORTED

from pools_mini.plugin import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    Run = Mapping[str, Any]

PAGE = "finer-coefficients.md"
OTHER_POOLS = "study-few.jsonl"
LEARNERS = ("layer", "row+column", "rank", "all weights")
COUNTS, STEPS, ADAPTED, NOISE = (1, 4, 8, 16, 64, 256, 300), (10, 30, 100), (2, 4), (0.5,)
STRONG = "strong"
OTHER_COUNTS = ("0", "1", "4", "8")
OTHER_LEARNERS = {"strong": "strong", "free": "row+column, no shrinkage"}


class Study:
    """The runs by case and seed."""

    def __init__(self, runs: Sequence[Run], others: Sequence[Run] = ()) -> None:
        self.runs = {(run["case"], run["seed"]): run for run in runs}
        #: runs on other pools, by pool and case
        self.others = {(run["pool"], run["case"]): run for run in others}

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


def runs_of(path: Path) -> list[dict[str, Any]]:
    """Return the runs in a file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def append_run(path: Path, run: Run) -> None:
    """Append a run to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(run) + "\n")


def write_page(runs: Sequence[Run], folder: Path) -> Study:
    """Write the tables between their markers in the page."""
    study = Study(runs, runs_of(folder / OTHER_POOLS))
    path = folder / PAGE
    path.write_text(filled(path.read_text(encoding="utf-8"), study), encoding="utf-8")
    return study


def filled(text: str, study: Study) -> str:
    """Return the page with tables from the runs."""
    return fill_tables(text, {name: rows(study) for name, rows in TABLES.items()})


def fill_tables(text: str, tables: Mapping[str, Iterator[str]]) -> str:
    """Return a page with these lines of tables between the markers of their names."""
    for name, rows in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        table = "\n".join(rows)
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
    """Yield the accuracy of the pipeline `strong` by seed, and its gain over the start."""
    yield f"| examples per task | {' | '.join(f'seed {n}' for n in REPORTED)} | above the start |"
    yield "|---" * (len(REPORTED) + 2) + "|"
    cases = {"none: `tsv-m`, the start": "orthogonalise"}
    cases |= {str(count or 300): f"{count or 300} examples: {STRONG}" for count in FEW_COUNTS}
    for name, case in cases.items():
        seeds = [seed for seed in REPORTED if seed in study.seeds(case)]
        means = {seed: study.mean(case, seed) for seed in seeds}
        gains = [means[seed] - study.mean("orthogonalise", seed) for seed in seeds]
        cells = [f"{means[seed]:.1f}" if seed in means else "" for seed in REPORTED]
        if seeds:
            yield f"| {name} | {' | '.join(cells)} | {_mean(gains) if any(gains) else ''} |"


def _pools(study: Study) -> Iterator[str]:
    """Yield the mean over tasks of a merge's score divided by the expert's, for other pools."""
    yield "| pool | learned | " + " | ".join(OTHER_COUNTS) + " |"
    yield "|---" * (len(OTHER_COUNTS) + 2) + "|"
    for pool in dict.fromkeys(pool for pool, _ in study.others):
        cases = [case for name, case in study.others if name == pool]
        for learner, label in OTHER_LEARNERS.items():
            by_count = {count: f"{count} examples: {learner}" for count in OTHER_COUNTS}
            cells = [
                _normalised(study, pool, by_count[count]) if by_count[count] in cases else ""
                for count in OTHER_COUNTS
            ]
            if any(cells):
                cells[0] = _normalised(study, pool, "start")
                yield f"| {pool} | {label} | {' | '.join(cells)} |"


def _normalised(study: Study, pool: str, case: str) -> str:
    scores, experts = (study.others[pool, name]["score"] for name in (case, "experts"))
    return f"{100 * statistics.mean(scores[task] / experts[task] for task in scores):.1f}"


def _examples(study: Study) -> Iterator[str]:
    yield f"| learned | {' | '.join(map(str, COUNTS))} |"
    yield "|---" * (len(COUNTS) + 1) + "|"
    for learner in (STRONG, *LEARNERS):
        cells = [
            _mean(few(study, case)) if set(REPORTED[:2]) <= set(study.seeds(case)) else ""
            for case in (limited(learner, count) for count in COUNTS)
        ]
        yield f"| {learner} | {' | '.join(cells)} |"


def limited(learner: str, count: int) -> str:
    """Return the case of a learner with a number of examples per task."""
    is_whole = count == COUNTS[-1] and learner != STRONG
    return whole(learner) if is_whole else f"{count} examples: {learner}"


def whole(learner: str) -> str:
    """Return the case of a learner with all images, all tasks and 100 steps."""
    return f"orthogonalise, {learner}" + ", teacher" * (learner == "layer")


def _steps(study: Study) -> Iterator[str]:
    learners = [learner for learner in LEARNERS if learner != "rank"]
    yield f"| learned | {' | '.join(map(str, STEPS))} |"
    yield "|---" * (len(STEPS) + 1) + "|"
    for learner in learners:
        cases = [whole(learner) if n == 100 else f"{n} steps: {learner}" for n in STEPS]
        cells = [_mean(few(study, case)) for case in cases]
        yield f"| {learner} | {' | '.join(cells)} |"


def few(study: Study, case: str) -> list[float]:
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
        cases = (whole(learner), *(f"noise {noise}: {learner}" for noise in NOISE))
        cells = [_mean(few(study, case)) for case in cases]
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
    "pools": _pools,
    "examples": _examples,
    "steps": _steps,
    "teachers": _teachers,
    "noise": _noise,
    "choice": _choice,
}
