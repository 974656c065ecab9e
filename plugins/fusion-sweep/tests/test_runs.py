"""`fuse sweep` and `fuse runs` as users call them, and the store as several processes use it."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from fusion_core import Reference, Report, run_fusion
from fusion_core.commands import load_yaml
from fusion_core.errors import FusionError, RecipeError
from fusion_sweep import sweep
from fusion_sweep.command import sweep as sweep_command
from fusion_sweep.formatting import describe_curves, sparkline
from fusion_sweep.objectives import Objective
from fusion_sweep.runs.command import app

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "sweeps.sqlite"


@pytest.fixture
def call(store: Path) -> Callable[..., str]:
    """Return a function that runs `fuse runs` and returns its output."""

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--store", str(store)])
        if result.exception is not None:
            raise result.exception
        return result.stdout

    return run


@pytest.fixture
def swept(recipe: dict[str, Any], store: Path) -> Any:
    recipe["algorithm"] = {"name": "scaled", "fails_above": 0.9}
    return sweep(recipe, over={"algorithm.scale": [0.1, 0.3, 0.6, 1.0]}, store=store)


def test_sweeps_and_runs_are_listed_sorted_and_filtered(
    swept: Any, call: Callable[..., str]
) -> None:
    (row,) = json.loads(call("ls", "--json"))
    assert (row["sweep"], row["finished"], row["failed"], row["runs"]) == (swept.id[:8], 3, 1, 4)
    rows = json.loads(call("ls", swept.id[:8], "--json"))
    assert [row.get("average") for row in rows] == [
        *sorted((row["average"] for row in rows[:3]), reverse=True),
        None,
    ]
    by_scale = json.loads(call("ls", swept.id[:8], "--json", "--sort", "algorithm.scale"))
    assert [row["algorithm.scale"] for row in by_scale] == [1.0, 0.6, 0.3, 0.1]
    (one,) = json.loads(call("ls", swept.id[:8], "--json", "--where", "algorithm.scale=0.3"))
    assert one["algorithm.scale"] == 0.3
    lines = call("ls", swept.id[:8]).splitlines()
    assert lines[0].split()[:3] == ["run", "algorithm", "algorithm.scale"]
    assert len(lines) == 5
    with pytest.raises(RecipeError, match="unknown column 'scale'"):
        call("ls", swept.id[:8], "--sort", "scale")


def test_show_prints_a_recipe_that_repeats_the_run(
    swept: Any, call: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = call("show", swept.best().id[:8])
    assert "fuse run" in text
    monkeypatch.chdir(tmp_path)
    (tmp_path / "again.yaml").write_text(text)
    report = run_fusion("again.yaml").report
    halves = [swept.best().report.average, swept.tested.report.average]
    assert report is not None
    assert report.average == pytest.approx(sum(halves) / 2)
    assert (
        load_yaml(text, origin="show")["algorithm"]["scale"]
        == swept.best().point["algorithm.scale"]
    )


def test_runs_are_compared_and_exported(swept: Any, call: Callable[..., str]) -> None:
    first, second = (group.trials[0].id for group in swept.groups[:2])
    heading = call("compare", first, second).splitlines()[0]
    assert first[:8] in heading
    assert second[:8] in heading
    rows = list(csv.DictReader(call("export", swept.id[:8]).splitlines()))
    assert [float(row["average"]) for row in rows[:3]] == [
        group.mean(swept.objectives[0]) for group in swept.groups
    ]
    assert json.loads(call("export", swept.id[:8], "--format", "json"))[3]["error"] == (
        "it is too large"
    )
    assert call("compare", first, first).splitlines()[0] != heading
    with pytest.raises(RecipeError, match="failed and has no results"):
        call("compare", first, swept.failed[0].id)


def test_removed_trials_run_again_and_shared_ones_stay(
    swept: Any, recipe: dict[str, Any], call: Callable[..., str], store: Path, log: Path
) -> None:
    other = sweep(recipe, over={"algorithm.scale": [0.1, 0.2]}, store=store)
    assert call("rm", swept.id[:8]) == "removed: 4 runs\n"
    assert [row["sweep"] for row in json.loads(call("ls", "--json"))] == [other.id[:8]]
    log.write_text("")
    sweep(recipe, over={"algorithm.scale": [0.1, 0.3]}, store=store)
    assert "0.3" in log.read_text()
    assert "0.1" not in log.read_text().splitlines()[0]
    with pytest.raises(RecipeError, match="no name begins with 'zz'"):
        call("show", "zz")


def test_the_command_prints_the_best_points_and_curves(
    recipe: dict[str, Any], store: Path, installed: Path
) -> None:
    assert installed
    from typer import Typer

    program = Typer()
    program.command()(sweep_command)
    folder = recipe["model_pool"]["folder"]
    flags = ["--algo", "scaled,mean", "--pool", "toys", "--set", f"model_pool.folder={folder}"]
    over = ["--over", "algorithm.scaled.scale=0.1:0.5:0.1", "--store", str(store), "--top", "2"]
    result = CliRunner().invoke(program, [*flags, *over])
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[0].split()[:3] == ["run", "algorithm", "algorithm.scaled.scale"]
    assert lines[3].startswith("the best 2 of 6; all: fuse runs ls ")
    assert "chosen and measured on one half" in lines[4]
    assert "the expert scores below the base on a " in lines[5]  # experts are random weights
    assert lines[6].startswith(
        "the best on the other half, which were not used to choose: average "
    )
    assert lines[7].startswith("scaled algorithm.scaled.scale: 0.1 ")
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--over", "scale=1"], "expected OPTION=VALUES"),
        (["--over", "algorithm.scale"], "expected OPTION=VALUES"),
        (["--over", "algorithm.scale=1:0:0.1"], "the range is empty"),
        (["--over", "algorithm.scale=0:1:log"], "the range is empty"),
        (["--over", "algorithm.scale=0.1,~"], "a value is missing"),
        (["--over", "algorithm.scale=1", "--over", "algorithm.scale=2"], "given twice"),
        (
            ["--over", "algorithm.scale=1", "--random", "2", "--tpe", "3"],
            "conflicting options: --random and --tpe",
        ),
        (["--over", "algorithm.scale=1", "--keep", "all"], "expected a positive number or best"),
        (["--over", "algorithm.scale=1", "-o", "x"], "-o needs --keep"),
        (["--over", "algorithm.scale=1", "--on", "train"], "expected half or test"),
        (
            ["--over", "algorithm.scale=1", "--objective", "entropy", "--objective", "a"],
            "on different examples",
        ),
    ],
)
def test_invalid_flags_are_refused(
    recipe: dict[str, Any], store: Path, flags: list[str], message: str
) -> None:
    from typer import Typer

    program = Typer()
    program.command()(sweep_command)
    folder = recipe["model_pool"]["folder"]
    known = ["--algo", "scaled", "--pool", "toys", "--set", f"model_pool.folder={folder}"]
    result = CliRunner().invoke(program, [*known, "--store", str(store), *flags])
    assert isinstance(result.exception, FusionError)
    assert message in str(result.exception)


def test_nan_scores_lowest() -> None:
    scores = {"a": {"accuracy": math.nan}, "b": {"accuracy": 0.5}}
    for report in (Report(scores), Report(dict(reversed(scores.items())))):
        values = [Objective(name).score(report) for name in ("average", "worst", "a", "b")]
        assert values == [-math.inf, -math.inf, -math.inf, 0.5]


def test_a_sparkline_has_one_bar_per_value() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▁▁"


def test_curves_show_the_best_over_other_options(recipe: dict[str, Any], store: Path) -> None:
    over = {"algorithm.scale": [0.1, 0.3, 0.6], "algorithm.count": [1, 2]}
    result = sweep(recipe, over=over, store=store)
    (line,) = describe_curves(result)  # two values give no curve
    best = result.best().point["algorithm.scale"]
    assert line.endswith(f"best at {best:g}")


OPEN = (
    "import sys; from pathlib import Path; from fusion_sweep import Store; Store(Path(sys.argv[1]))"
)


def test_several_processes_can_create_a_store_at_once(
    store: Path, environment: dict[str, str]
) -> None:
    program = [sys.executable, "-c", OPEN, str(store)]
    processes = [subprocess.Popen(program, env=environment) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]


def test_normalised_scores_need_experts_above_the_base() -> None:
    report = Report({"a": {"x": 0.5}}, Reference({"a": {"x": 0.4}}, {"a": {"x": 0.2}}))
    assert Objective("average").value(report) == 0.5
    with pytest.raises(RecipeError, match="the expert scores below the base on a"):
        Objective("normalised").value(report)
