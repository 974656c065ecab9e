"""`fuse sweep` and `fuse runs` as users call them, and the store as several processes use it."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from fusion_core import Reference, Report, run_fusion
from fusion_core.commands import dump_yaml, load_yaml
from fusion_core.errors import FusionError, RecipeError
from fusion_sweep import sweep
from fusion_sweep.command import sweep as sweep_command
from fusion_sweep.formatting import describe_curves, format_html, print_result, sparkline
from fusion_sweep.objectives import Objective
from fusion_sweep.runs.command import app
from fusion_sweep.runs.listing import filter_rows
from fusion_sweep.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result


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


def invoke_sweep(*arguments: str) -> Result:
    """Run `fuse sweep`."""
    program = Typer()
    program.command()(sweep_command)
    return CliRunner().invoke(program, arguments)


@pytest.mark.parametrize("option", ["algorithm.scale", "algorithm.scaled.scale"])
def test_set_gives_an_option_to_the_algorithms_that_are_tried(
    recipe: dict[str, Any], store: Path, tmp_path: Path, option: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**recipe, "algorithm": {"name": "scaled", "scale": 0.6}}))
    call = [str(path), "--algo", "scaled", "--seeds", "2", "--json", "--store", str(store)]
    printed = invoke_sweep(*call, "--set", f"{option}=0.1").stdout
    expected = sweep(recipe, over={"algorithm.scale": [0.1]}, store=store).best().report.average
    assert {run["average"] for run in json.loads(printed)["runs"]} == {expected}


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


@pytest.mark.parametrize("text", ["1", "1.0", "1e0"])
def test_numbers_are_found_however_they_are_written(
    swept: Any, call: Callable[..., str], text: str
) -> None:
    (row,) = json.loads(call("ls", swept.id[:8], "--json", "--where", f"algorithm.scale={text}"))
    assert row["algorithm.scale"] == 1.0


def test_whole_numbers_are_not_rounded() -> None:
    rows = [{"steps": 12345, "score": 0.123456, "run": "abcdefgh1234"}]
    for met in ("steps=12345", "score=0.1235", "score=0.123456", "run=abcdefgh"):
        assert filter_rows(rows, [met]) == rows
    for missed in ("steps=12340", "score=0.123", "run=abcd"):
        assert filter_rows(rows, [missed]) == []


def test_a_condition_that_no_row_meets_is_named(swept: Any, store: Path) -> None:
    arguments = ["ls", swept.id[:8], "--where", "algorithm.scale=7", "--store", str(store)]
    result = CliRunner().invoke(app, arguments)
    assert result.stderr == f"no runs with algorithm.scale=7 in {store}\n"


def test_show_names_the_store_of_the_run(swept: Any, call: Callable[..., str], store: Path) -> None:
    short = swept.best().id[:8]
    assert f"# fuse runs show {short} --store {store} > {short}.yaml && " in call("show", short)


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


def parse_json(text: str) -> Any:
    """Parse JSON, without the NaN and Infinity that Python alone accepts."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def diverging(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe whose loss is NaN at a scale of 1e38 and infinite at 1e37."""
    recipe["algorithm"] = {"name": "scaled", "fails_above": 1e39}
    recipe["task_pool"] = {"loss": True}
    recipe["alignment"] = {"nan": "allow", "outliers": "allow"}
    return recipe


def test_scores_that_are_not_finite_are_shown(
    diverging: dict[str, Any],
    store: Path,
    call: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    scales = [0.1, 0.3, 1e37, 1e38]
    result = sweep(diverging, over={"algorithm.scale": scales}, seeds=2, store=store)
    print_result(result, top=10)
    shown = capsys.readouterr().out
    assert "inf ± nan" in shown
    assert "nan ± nan" in shown
    assert "algorithm.scale: 0.1 █▁   1e+38, best at 0.1" in shown
    for arguments in (("ls", result.id, "--json"), ("export", result.id, "--format", "json")):
        rows = parse_json(call(*arguments))
        assert {row["average"] for row in rows[4:]} == {"Infinity", "NaN"}


def test_lower_is_better_sorts_the_lowest_first(
    diverging: dict[str, Any], store: Path, call: Callable[..., str]
) -> None:
    result = sweep(diverging, over={"algorithm.scale": [1e38, 0.6, 0.1]}, store=store)
    for column in ("average", "b.loss"):
        rows = json.loads(call("ls", result.id, "--json", "--sort", column))
        assert rows[0][column] < rows[1][column]
        assert rows[2][column] == "NaN"
    rows = json.loads(call("ls", result.id, "--json", "--sort", "algorithm.scale"))
    assert [row["algorithm.scale"] for row in rows] == [1e38, 0.6, 0.1]


def test_models_without_a_finite_score_are_not_written(
    diverging: dict[str, Any], store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    result = sweep(
        diverging, over={"algorithm.scale": [1e38, 2e38]}, store=store, keep=1, output=out
    )
    assert list(result.written) == []
    assert not out.exists()
    assert "models of --keep that are not written: 1 of 1" in caplog.text
    over = {"algorithm.scale": [1e38, 0.3]}
    result = sweep(diverging, over=over, store=store, keep=2, output=out)
    assert list(result.written) == [out / "1"]


def test_a_keep_that_writes_nothing_fails(
    diverging: dict[str, Any], store: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(dump_yaml(diverging))
    flags = ["--over", "algorithm.scale=1e38", "--store", str(store), "--json"]
    keep = ["--keep", "best", "-o", str(tmp_path / "out")]
    without, result = (
        invoke_sweep(str(tmp_path / "recipe.yaml"), *flags, *more) for more in ([], keep)
    )
    assert without.exit_code == 0
    assert result.exit_code == 1
    assert parse_json(result.stdout)["written"] == []


def test_json_has_the_best_on_the_other_half(recipe: dict[str, Any], store: Path) -> None:
    result = sweep(recipe, over={"algorithm.scale": [0.1, 0.3]}, store=store)
    report = result.tested.report
    assert result.as_json()["tested"] == {
        "run": result.tested.id,
        "on": "other half",
        "average": report.average,
        "tasks": report.tasks,
    }
    on_test = sweep(recipe, over={"algorithm.scale": [0.1]}, on="test", store=store)
    assert on_test.as_json()["tested"] is None


@pytest.mark.parametrize(
    "arguments", [["ls"], ["show", "a"], ["compare", "a"], ["export", "a"], ["rm", "a"]]
)
def test_a_missing_store_is_an_error_and_is_not_created(
    tmp_path: Path, arguments: list[str]
) -> None:
    path = tmp_path / "folder" / "typo.sqlite"
    error = CliRunner().invoke(app, [*arguments, "--store", str(path)]).exception
    assert isinstance(error, FusionError)
    assert error.message == f"no store at {path}"
    assert error.hint
    assert not path.parent.exists()


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


def test_an_unknown_name_removes_nothing(swept: Any, call: Callable[..., str]) -> None:
    with pytest.raises(RecipeError, match="no name begins with 'zz'"):
        call("rm", swept.id[:8], "zz")
    assert [row["sweep"] for row in json.loads(call("ls", "--json"))] == [swept.id[:8]]


def test_columns_are_those_of_all_rows(swept: Any, call: Callable[..., str]) -> None:
    arguments = ("ls", swept.id[:8], "--where", "algorithm=none", "--json")
    assert json.loads(call(*arguments, "--sort", "algorithm.scale")) == []
    with pytest.raises(RecipeError, match="unknown column 'sacle'"):
        call(*arguments, "--where", "sacle=1")
    with pytest.raises(RecipeError, match="expected COLUMN=VALUE, got 'scale'"):
        call(*arguments, "--where", "scale")


@pytest.mark.parametrize(
    ("objectives", "seeds", "says"),
    [
        (["worst"], 1, "the best on the other half, which were not used to choose: worst "),
        (["a", "average"], 2, "the best, with seed 0, on the other half, .*: a .*, average "),
    ],
)
def test_the_objectives_are_shown_on_the_other_half(
    recipe: dict[str, Any], store: Path, objectives: list[str], seeds: int, says: str
) -> None:
    over = {"algorithm.scale": [0.1, 0.2]}
    result = sweep(recipe, over=over, objectives=objectives, seeds=seeds, store=store)
    assert result.tested is not None
    report = result.tested.report
    assert report is not None
    shown = [
        Objective(name).metric(report).shown(Objective(name).value(report)) for name in objectives
    ]
    (line,) = [line for line in format_html(result, 10).split("<br>") if "not used" in line]
    assert re.search(says, line)
    assert all(value in line for value in shown)


def test_an_undefined_objective_leaves_no_sweep(
    recipe: dict[str, Any], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Report, "average", None)
    with pytest.raises(RecipeError, match="objective 'average' is undefined for these tasks"):
        sweep(recipe, over={"algorithm.scale": [0.1, 0.2]}, store=store)
    with Store(store) as opened:
        assert opened.sweeps() == []


def test_the_command_prints_the_best_points_and_curves(
    recipe: dict[str, Any], store: Path, installed: Path
) -> None:
    assert installed
    folder = recipe["model_pool"]["folder"]
    flags = ["--algo", "scaled,mean", "--pool", "toys", "--set", f"model_pool.folder={folder}"]
    over = ["--over", "algorithm.scaled.scale=0.1:0.5:0.1", "--store", str(store), "--top", "2"]
    result = invoke_sweep(*flags, *over)
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
    folder = recipe["model_pool"]["folder"]
    known = ["--algo", "scaled", "--pool", "toys", "--set", f"model_pool.folder={folder}"]
    result = invoke_sweep(*known, "--store", str(store), *flags)
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
    assert sparkline([math.nan, 1.0, -math.inf, 2.0, math.inf]) == " ▁ █ "
    assert sparkline([math.nan, math.inf]) == "  "


def test_curves_show_the_best_over_other_options(recipe: dict[str, Any], store: Path) -> None:
    over = {"algorithm.scale": [0.1, 0.3, 0.6], "algorithm.count": [1, 2]}
    result = sweep(recipe, over=over, store=store)
    (line,) = describe_curves(result)  # two values give no curve
    best = result.best().point["algorithm.scale"]
    assert line.endswith(f"best at {best:g}")


OPEN = (
    "import sys; from pathlib import Path; from fusion_sweep import Store; "
    "Store(Path(sys.argv[1])).is_sweep('')"
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
