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

from fusion_core import Report, run_fusion
from fusion_core.commands import load_yaml
from fusion_core.errors import FusionError, RecipeError
from fusion_sweep import plugin, sweep
from fusion_sweep.command import sweep as sweep_command
from fusion_sweep.objectives import Objective
from fusion_sweep.runs.command import app
from fusion_sweep.shown import curves, sparkline
from fusion_testing import CommandSuite

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fusion_core import CommandSpec

SPECS = {spec.name: spec for spec in plugin.fusion_register_commands()}


class TestCommands(CommandSuite):
    @pytest.fixture(params=SPECS)
    def spec(self, request: pytest.FixtureRequest) -> CommandSpec:
        return SPECS[request.param]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "sweeps.sqlite"


@pytest.fixture
def call(store: Path) -> Callable[..., str]:
    """Return what `fuse runs` prints."""

    def called(*arguments: str) -> str:
        done = CliRunner().invoke(app, [*arguments, "--store", str(store)])
        if done.exception is not None:
            raise done.exception
        return done.stdout

    return called


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
    assert [each.get("average") for each in rows] == [
        *sorted((each["average"] for each in rows[:3]), reverse=True),
        None,
    ]
    by_scale = json.loads(call("ls", swept.id[:8], "--json", "--sort", "algorithm.scale"))
    assert [each["algorithm.scale"] for each in by_scale] == [1.0, 0.6, 0.3, 0.1]
    (one,) = json.loads(call("ls", swept.id[:8], "--json", "--where", "algorithm.scale=0.3"))
    assert one["algorithm.scale"] == 0.3
    shown = call("ls", swept.id[:8]).splitlines()
    assert shown[0].split()[:3] == ["run", "algorithm", "algorithm.scale"]
    assert len(shown) == 5
    with pytest.raises(RecipeError, match="no column 'scale'"):
        call("ls", swept.id[:8], "--sort", "scale")


def test_what_is_shown_of_a_run_is_a_recipe_that_makes_it_again(
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
    with pytest.raises(RecipeError, match="failed, and measured nothing"):
        call("compare", first, swept.failed[0].id)


def test_what_is_removed_is_run_again_and_what_another_sweep_has_stays(
    swept: Any, recipe: dict[str, Any], call: Callable[..., str], store: Path, log: Path
) -> None:
    other = sweep(recipe, over={"algorithm.scale": [0.1, 0.2]}, store=store)
    assert call("rm", swept.id[:8]) == "removed: 4 runs\n"
    assert [row["sweep"] for row in json.loads(call("ls", "--json"))] == [other.id[:8]]
    log.write_text("")
    sweep(recipe, over={"algorithm.scale": [0.1, 0.3]}, store=store)
    assert "0.3" in log.read_text()
    assert "0.1" not in log.read_text().splitlines()[0]
    with pytest.raises(RecipeError, match="nothing is called so"):
        call("show", "zz")


def test_the_command_prints_the_best_and_how_the_objective_moves(
    recipe: dict[str, Any], store: Path, installed: Path
) -> None:
    assert installed
    from typer import Typer

    program = Typer()
    program.command()(sweep_command)
    folder = recipe["model_pool"]["folder"]
    flags = ["--algo", "scaled,mean", "--pool", "toys", "--set", f"model_pool.folder={folder}"]
    over = ["--over", "algorithm.scaled.scale=0.1:0.5:0.1", "--store", str(store), "--top", "2"]
    done = CliRunner().invoke(program, [*flags, *over])
    lines = done.stdout.splitlines()
    assert done.exit_code == 0
    assert lines[0].split()[:3] == ["run", "algorithm", "algorithm.scaled.scale"]
    assert lines[3].startswith("the best 2 of 6; all: fuse runs ls ")
    assert "chosen and measured on a half" in lines[4]
    assert "the expert scores below the base on a " in lines[5]  # experts are random weights
    assert lines[6].startswith("the best on the other half, which chose nothing: average ")
    assert lines[7].startswith("scaled algorithm.scaled.scale: 0.1 ")
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--over", "scale=1"], "names no option"),
        (["--over", "algorithm.scale"], "names no option"),
        (["--over", "algorithm.scale=1:0:0.1"], "nothing lies in this range"),
        (["--over", "algorithm.scale=0:1:log"], "nothing lies in this range"),
        (["--over", "algorithm.scale=0.1,~"], "a value is missing"),
        (["--over", "algorithm.scale=1", "--over", "algorithm.scale=2"], "given twice"),
        (["--over", "algorithm.scale=1", "--random", "2", "--tpe", "3"], "in one way"),
        (["--over", "algorithm.scale=1", "--keep", "all"], "neither a number nor best"),
        (["--over", "algorithm.scale=1", "-o", "x"], "nothing is kept"),
        (["--over", "algorithm.scale=1", "--on", "train"], "neither half nor test"),
        (["--over", "algorithm.scale=1", "--objective", "entropy", "--objective", "a"], "on other"),
    ],
)
def test_what_is_wrong_is_said(
    recipe: dict[str, Any], store: Path, flags: list[str], said: str
) -> None:
    from typer import Typer

    program = Typer()
    program.command()(sweep_command)
    folder = recipe["model_pool"]["folder"]
    known = ["--algo", "scaled", "--pool", "toys", "--set", f"model_pool.folder={folder}"]
    done = CliRunner().invoke(program, [*known, "--store", str(store), *flags])
    assert isinstance(done.exception, FusionError)
    assert said in str(done.exception)


def test_what_is_not_a_number_is_the_worst() -> None:
    report = Report({"a": {"accuracy": math.nan}, "b": {"accuracy": 0.5}})
    scores = [Objective(name).score(report) for name in ("average", "a", "b")]
    assert scores == [-math.inf, -math.inf, 0.5]


def test_a_sparkline_has_a_bar_a_value() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▁▁"


def test_curves_are_of_the_best_over_other_options(recipe: dict[str, Any], store: Path) -> None:
    over = {"algorithm.scale": [0.1, 0.3, 0.6], "algorithm.count": [1, 2]}
    found = sweep(recipe, over=over, store=store)
    (line,) = curves(found)  # of two values there is no curve
    best = found.best().point["algorithm.scale"]
    assert line.endswith(f"best at {best:g}")


OPEN = (
    "import sys; from pathlib import Path; from fusion_sweep import Store; Store(Path(sys.argv[1]))"
)


def test_processes_may_make_a_store_at_once(store: Path, environment: dict[str, str]) -> None:
    program = [sys.executable, "-c", OPEN, str(store)]
    every = [subprocess.Popen(program, env=environment) for _ in range(3)]
    assert [each.wait() for each in every] == [0, 0, 0]


def test_nothing_is_chosen_by_shares_of_an_expert_below_the_base() -> None:
    report = Report({"a": {"x": 0.5}}, {"a": {"x": 0.4}}, {"a": {"x": 0.2}})
    assert Objective("average").value(report) == 0.5
    with pytest.raises(RecipeError, match="the expert scores below the base on a"):
        Objective("normalised").value(report)
