"""Read the files of a run that a page shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from safetensors.torch import load_file

from fusion_core.commands import Provenance, load_recipe, read_provenance
from fusion_core.errors import FusionError, RecipeError
from fusion_report.reading import read_report

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fusion_core import Report

    #: expert -> tensor -> value
    Coefficients = Mapping[str, Mapping[str, float]]
    #: step -> name -> value
    Log = Mapping[int, Mapping[str, float]]

_TABLE = TypeAdapter(dict[str, dict[str, float]])
_LINE = TypeAdapter(dict[str, float])
_PROVENANCE, _RECIPE, _REPORT = "provenance.json", "recipe.yaml", "report.json"
_COEFFICIENTS = "coefficients.json"
_METRICS = "metrics.jsonl"
#: `transductive` of a report -> description of the data that the algorithm saw
_ADAPTED = {
    True: "test examples without labels",
    False: "examples outside the test set",
    None: "no data",
}


@dataclass(frozen=True)
class Run:
    """A run; missing parts are empty or None."""

    name: str
    directory: Path
    recipe: Mapping[str, Any] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    report: Report | None = None
    #: values that the algorithm logged per step
    log: Log = field(default_factory=dict)
    coefficients: Coefficients = field(default_factory=dict)
    #: standard deviation of the coefficients within each tensor, if tensors have several
    spreads: Coefficients = field(default_factory=dict)

    @property
    def stages(self) -> list[str]:
        """The names of the stages."""
        return [stage.name for stage in self.provenance.stages]

    @property
    def method(self) -> str:
        """The algorithm, or the stages of a pipeline joined by arrows."""
        return " \N{RIGHTWARDS ARROW} ".join(self.stages)

    @property
    def experts(self) -> list[str]:
        """The names of the experts."""
        return [name for name in self.provenance.inputs if name != "base"]

    @property
    def data(self) -> list[tuple[str, str]]:
        """Descriptions of the data that the run adapted on and was measured on, with titles."""
        pool = self.recipe.get("task_pool") or {}
        report, split = self.report, self.option("adapt_split")
        facts = {
            "tasks": ", ".join(report.tasks) if report else "",
            "task pool": str(pool.get("name") or "") if isinstance(pool, Mapping) else "",
            "measured on": (report.measured_on or "every test example") if report else "",
            "adapted on": _ADAPTED[report.transductive] if report else "",
            "examples": f"the {split} split without labels" if split else "",
            "options chosen": (report.chosen or "") if report else "",
            "seed": str(self.recipe.get("seed", "")),
        }
        conditions = report.conditions if report else {}
        for task, values in conditions.items():
            facts[f"conditions of {task}"] = ", ".join(f"{k} {v}" for k, v in values.items())
        return [(name, text) for name, text in facts.items() if text]

    def option(self, name: str) -> Any:  # noqa: ANN401 - any value in a recipe
        """Return an option of the first stage in the recipe that has it; else None."""
        stages = self.recipe.get("algorithm")
        options = stages if isinstance(stages, list) else [stages]
        return next((stage[name] for stage in options if stage and name in stage), None)


def read_runs(
    directories: Sequence[Path], *, outcomes: bool = False
) -> tuple[list[Run], list[FusionError]]:
    """Return the runs in directories, and the errors of directories without a readable run.

    `outcomes` also reads the outcomes of test examples, which intervals need. Raises the first
    error if no directory has a run.
    """
    runs, problems = [], []
    directories = list(dict.fromkeys(directories))
    for directory, name in zip(directories, _names(directories), strict=True):
        try:
            runs.append(read_run(directory, name, outcomes=outcomes))
        except FusionError as problem:
            problems.append(problem)
    if not runs:
        raise problems[0]
    return runs, problems


def read_run(directory: Path, name: str, *, outcomes: bool = False) -> Run:
    """Read a run; raise a `FusionError` for a directory without a run and for damaged files."""
    if not (directory / _PROVENANCE).is_file() and not (directory / _REPORT).is_file():
        raise RecipeError(f"no run in {directory}", hint="Name directories that fuse run wrote.")
    recipe, provenance = directory / _RECIPE, directory / _PROVENANCE
    return Run(
        name,
        directory,
        load_recipe(recipe) if recipe.is_file() else {},
        read_provenance(directory) if provenance.is_file() else Provenance(),
        read_report(directory, outcomes=outcomes) if (directory / _REPORT).is_file() else None,
        _read_log(directory / _METRICS) if (directory / _METRICS).is_file() else {},
        *_read_coefficients(directory),
    )


def _names(directories: Sequence[Path]) -> list[str]:
    """Name runs by the last parts of their paths, or by whole paths if these are not unique."""
    short = [directory.resolve().name for directory in directories]
    return short if len({*short}) == len(short) else [str(directory) for directory in directories]


def _read_log(path: Path) -> Log:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        entries = [_LINE.validate_python(json.loads(line)) for line in lines]
        return {int(entry.pop("step")): entry for entry in entries}
    except (OSError, ValueError, LookupError, RecursionError) as error:
        raise _damage_error(path, error) from error


def _read_coefficients(directory: Path) -> tuple[Coefficients, Coefficients]:
    """Return coefficients and their spread within tensors; empty without a file."""
    path = directory / _COEFFICIENTS
    if not path.is_file():
        return {}, {}
    try:
        means = _TABLE.validate_python(json.loads(path.read_bytes())["coefficients"])
        finer = path.with_suffix(".safetensors")
        return means, _read_spreads(means, finer) if finer.is_file() else {}
    except Exception as error:  # safetensors raises a bare Exception
        raise _damage_error(path, error) from error


def _read_spreads(means: Coefficients, path: Path) -> Coefficients:
    spreads = {key: float(values.std(correction=0)) for key, values in load_file(path).items()}
    return {
        expert: {name: spreads.get(f"{expert}/{name}", 0.0) for name in row}
        for expert, row in means.items()
    }


def _damage_error(path: Path, error: Exception) -> FusionError:
    reason = " ".join(str(error).split())[:200]
    hint = "Run the recipe in the same directory again."
    return FusionError(f"cannot read {path}: {reason}", hint=hint)
