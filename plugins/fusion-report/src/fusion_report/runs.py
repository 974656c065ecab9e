"""What a run left in its directory, as far as a page shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter
from safetensors.torch import load_file

from fusion_core.commands import load_recipe
from fusion_core.errors import FusionError, RecipeError
from fusion_report.reading import read_report

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fusion_core import Report

    #: expert -> tensor -> number
    Coefficients = Mapping[str, Mapping[str, float]]
    #: step -> name -> number
    Log = Mapping[int, Mapping[str, float]]

_TABLE = TypeAdapter(dict[str, dict[str, float]])
_LINE = TypeAdapter(dict[str, float])
_PROVENANCE, _RECIPE, _REPORT = "provenance.json", "recipe.yaml", "report.json"
_COEFFICIENTS = "coefficients.json"
_METRICS = "metrics.jsonl"


#: What a recipe begins to describe a live object with.
_LIVE = "<live "
#: What a report says of the data that the algorithm saw.
_ADAPTED = {
    True: "the test examples, without their labels",
    False: "other examples than those of the test",
    None: "no data",
}


class Stage(BaseModel):
    """A stage of the run's algorithm."""

    name: str
    plugin: str | None = None


class File(BaseModel):
    """A file that was read or written."""

    bytes: int = 0


class Input(BaseModel):
    """A model that was merged: its name or its commit on the hub, and its files."""

    source: str = ""
    files: dict[str, File] = {}

    @property
    def size(self) -> int:
        """Bytes of its files; 0 where they are not known."""
        return sum(file.bytes for file in self.files.values())


class Outputs(BaseModel):
    """What was written."""

    files: dict[str, File] = {}
    tensors_blake3: str = ""


class Timings(BaseModel):
    """What it took, without the evaluation."""

    finished: str = ""
    seconds: float | None = None
    #: in bytes
    peak_memory: int | None = None


class Provenance(BaseModel):
    """The parts of `provenance.json` that a page shows."""

    versions: dict[str, str] = {}
    plugins: dict[str, str] = {}
    machine: str = ""
    device: str = ""
    threads: int | None = None
    inputs: dict[str, Input] = {}
    stages: list[Stage] = []
    tensors: dict[str, int] = {}
    outputs: Outputs = Outputs()
    timings: Timings = Timings()

    @property
    def size(self) -> int:
        """Bytes of all files that were written."""
        return sum(file.bytes for file in self.outputs.files.values())


@dataclass(frozen=True)
class Run:
    """One run: what is not there is empty, or None."""

    name: str
    directory: Path
    recipe: Mapping[str, Any] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    report: Report | None = None
    #: what the algorithm logged, step by step
    log: Log = field(default_factory=dict)
    coefficients: Coefficients = field(default_factory=dict)
    #: standard deviation of the coefficients that share a tensor, where several do
    spreads: Coefficients = field(default_factory=dict)

    @property
    def stages(self) -> list[str]:
        """The names of the algorithm's stages."""
        return [stage.name for stage in self.provenance.stages]

    @property
    def method(self) -> str:
        """The algorithm, or the stages of the pipeline."""
        return " \N{RIGHTWARDS ARROW} ".join(self.stages)

    @property
    def experts(self) -> list[str]:
        """The names of the models that were merged."""
        return [name for name in self.provenance.inputs if name != "base"]

    @property
    def is_live(self) -> bool:
        """Whether parts of the run were live objects, which its recipe only describes."""
        return _LIVE in str(self.recipe) or any(
            not stage.plugin for stage in self.provenance.stages
        )

    @property
    def data(self) -> list[tuple[str, str]]:
        """What the run measured on, and what it adapted on, in words."""
        pool = self.recipe.get("task_pool") or {}
        report, split = self.report, self.option("adapt_split")
        found = {
            "tasks": ", ".join(report.tasks) if report else "",
            "task pool": str(pool.get("name") or "") if isinstance(pool, Mapping) else "",
            "measured on": (report.measured_on or "every test example") if report else "",
            "adapted on": _ADAPTED[report.transductive] if report else "",
            "examples": f"the split {split}, without labels" if split else "",
            "options chosen": (report.chosen or "") if report else "",
            "seed": str(self.recipe.get("seed", "")),
        }
        conditions = report.conditions if report else {}
        for task, each in conditions.items():
            found[f"conditions of {task}"] = ", ".join(f"{k} {v}" for k, v in each.items())
        return [(name, said) for name, said in found.items() if said]

    def option(self, name: str) -> Any:  # noqa: ANN401 - whatever a recipe holds
        """Return an option of the first stage that has it, as the recipe says; else None."""
        stages = self.recipe.get("algorithm")
        found = (each for each in (stages if isinstance(stages, list) else [stages]) if each)
        return next((each[name] for each in found if name in each), None)


def read_runs(
    directories: Sequence[Path], *, outcomes: bool = False
) -> tuple[list[Run], list[FusionError]]:
    """Return the runs of directories, and what is wrong with the others.

    `outcomes` reads what became of each test example, which intervals are made of. Raises the first
    problem if none holds a run.
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
    """Read what a run left; raises a `FusionError` for a directory without, and for damage."""
    if not (directory / _PROVENANCE).is_file() and not (directory / _REPORT).is_file():
        raise RecipeError(f"{directory} holds no run", hint="Name directories that fuse run wrote.")
    recipe, provenance = directory / _RECIPE, directory / _PROVENANCE
    return Run(
        name,
        directory,
        load_recipe(recipe) if recipe.is_file() else {},
        _provenance(provenance) if provenance.is_file() else Provenance(),
        read_report(directory, outcomes=outcomes) if (directory / _REPORT).is_file() else None,
        _log(directory / _METRICS) if (directory / _METRICS).is_file() else {},
        *_coefficients(directory),
    )


def _names(directories: Sequence[Path]) -> list[str]:
    """Call runs by their directories' last names, or by all of them where two are alike."""
    short = [directory.resolve().name for directory in directories]
    return short if len({*short}) == len(short) else [str(directory) for directory in directories]


def _provenance(path: Path) -> Provenance:
    try:
        return Provenance.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _log(path: Path) -> Log:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [_LINE.validate_python(json.loads(line)) for line in lines]
        return {int(line.pop("step")): line for line in found}
    except (OSError, ValueError, LookupError, RecursionError) as error:
        raise _damaged(path, error) from error


def _coefficients(directory: Path) -> tuple[Coefficients, Coefficients]:
    """Return coefficients, and how far those spread that share a tensor; empty without a file."""
    path = directory / _COEFFICIENTS
    if not path.is_file():
        return {}, {}
    try:
        means = _TABLE.validate_python(json.loads(path.read_bytes())["coefficients"])
        finer = path.with_suffix(".safetensors")
        return means, _spreads(means, finer) if finer.is_file() else {}
    except Exception as error:  # safetensors' own is a bare Exception
        raise _damaged(path, error) from error


def _spreads(means: Coefficients, path: Path) -> Coefficients:
    finer = {key: float(each.std(correction=0)) for key, each in load_file(path).items()}
    return {
        expert: {name: finer.get(f"{expert}/{name}", 0.0) for name in row}
        for expert, row in means.items()
    }


def _damaged(path: Path, error: Exception) -> FusionError:
    reason = " ".join(str(error).split())[:200]
    return FusionError(f"{path} cannot be read: {reason}", hint="Run the recipe beside it again.")
