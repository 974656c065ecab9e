"""Call `fuse compare` as users do, in all formats."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from fusion_core import Measured, Metric, Reference, Report
from fusion_core.commands import Intervals, build_table
from fusion_core.errors import FusionError, RecipeError
from fusion_report.comparison.command import compare
from fusion_report.comparison.data import reports_as_json
from fusion_report.comparison.formats import as_csv, as_latex, as_markdown
from fusion_report.comparison.sorting import sort_reports

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

APP = typer.Typer()
APP.command()(compare)
BITS = Metric("bits", unit="", higher_is_better=False)
PLAIN = Report({"latin": {"accuracy": 0.5}, "greek": {"accuracy": 0.25}})
ROTATED = Report(
    {"latin": {"accuracy": 0.6}, "greek": {"accuracy": 0.5}},
    Reference(
        {"latin": {"accuracy": 0.5}, "greek": {"accuracy": 0.4}},
        {"latin": {"accuracy": 0.3}, "greek": {"accuracy": 0.9}},
    ),
)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(APP, [*map(str, arguments)])


def call_for_output(*arguments: object) -> str:
    done = call(*arguments)
    assert done.exception is None
    return done.stdout


def call_for_error(*arguments: object) -> FusionError:
    error = call(*arguments).exception
    assert isinstance(error, FusionError)
    return error


def accuracy(right: int) -> Measured:
    return Measured({"accuracy": right / 100}, [1] * right + [0] * (100 - right))


def report(*right: int, **options: Any) -> Report:
    """Return a report on up to three tasks of 100 examples; `right` counts the correct ones."""
    names = ("latin", "greek", "shapes")
    return Report(
        {name: accuracy(count) for name, count in zip(names, right, strict=False)},
        Reference(
            experts={name: accuracy(count) for name, count in zip(names, (99, 98, 97), strict=True)}
        ),
        **options,
    )


def write_report(directory: Path, content: Report, recipe: str = "") -> Path:
    directory.mkdir()
    (directory / "report.json").write_text(json.dumps(content.as_json()))
    if outcomes := content.outcomes_as_json():
        (directory / "outcomes.json").write_text(json.dumps(outcomes))
    if recipe:
        (directory / "recipe.yaml").write_text(recipe)
    return directory


# --- formats, orders, averages ----------------------------------------------------------------


def test_formats_have_one_row_per_model() -> None:
    models = {"a_b": report(50, 60), "c|d": report(70, 80)}
    rows = [*csv.reader(io.StringIO(as_csv(build_table(models, Intervals()))))]
    first = dict(zip(rows[0], rows[1], strict=True))
    assert [row[0] for row in rows] == ["model", "a_b", "c|d", "experts"]
    assert (first["latin accuracy"], first["average"], first["worst"]) == ("0.5", "0.55", "0.5")
    assert float(first["latin accuracy low"]) == pytest.approx(0.4038, abs=1e-4)
    assert float(first["normalised low"]) < float(first["normalised"])
    assert as_csv(build_table(models)).splitlines()[0] == (
        "model,latin accuracy,greek accuracy,average,normalised,worst"
    )
    assert as_markdown(build_table(models)).splitlines() == [
        "| model | latin | greek | average | normalised | worst |",
        "|---|---:|---:|---:|---:|---:|",
        "| a_b | 50.0 | 60.0 | 55.0 | 55.9 | 50.0 |",
        r"| c\|d | 70.0 | 80.0 | 75.0 | 76.2 | 70.0 |",
        "| experts | 99.0 | 98.0 | 98.5 | 100.0 | 98.0 |",
        "",
        "accuracy in %",
    ]
    latex = as_latex(build_table({"a_b": report(50)}, Intervals())).splitlines()
    assert latex[:2] == ["% accuracy in %", r"\begin{tabular}{lrrr}"]
    assert latex[3:6] == [
        r"model & latin & average & normalised \\",
        r"\midrule",
        r"a\_b & 50.0 $\pm$9.6 & 50.0 $\pm$9.6 & 50.5 $\pm$9.5 \\",
    ]


def test_no_format_normalises_by_an_expert_below_the_base() -> None:
    for write in (as_csv, as_latex, as_markdown):
        assert "normalised" not in write(build_table({"ties": ROTATED}))
    data = reports_as_json({"rotated": ROTATED, "good": report(50)})
    assert data["rotated"]["normalised_average"] is None
    assert data["good"]["normalised_average"] == pytest.approx(0.5 / 0.99)


def test_the_best_comes_first() -> None:
    models = {"a": report(50, 60), "b": report(70, 10), "c": report(60, 30)}
    assert list(sort_reports(models, "latin")) == ["b", "c", "a"]
    assert list(sort_reports(models, "average")) == ["a", "c", "b"]
    assert list(sort_reports({**models, "d": Report({})}, "greek")) == ["a", "c", "b", "d"]
    lower = {"wiki": {"bits": BITS}}
    texts = {
        name: Report({"wiki": {"bits": bits}}, metrics=lower)
        for name, bits in (("x", 2.0), ("y", 1.0))
    }
    assert list(sort_reports(texts, "wiki")) == ["y", "x"]
    with pytest.raises(RecipeError, match="unknown column 'avrage'\ndid you mean average"):
        sort_reports(models, "avrage")
    with pytest.raises(RecipeError, match=r"normalised.*below the base on latin\nColumns: latin, "):
        sort_reports({"rotated": ROTATED}, "normalised")


def test_averages_in_json_are_over_the_tasks_that_all_have() -> None:
    experts = {"latin": {"accuracy": 1.0}, "greek": {"accuracy": 0.5}}
    part = Report({"latin": {"accuracy": 1.0}}, Reference(experts=experts))
    data = reports_as_json({"a": Report(PLAIN.tasks, Reference(experts=experts)), "b": part})
    keys = ("average", "normalised_average", "averaged_over")
    assert [data["a"][key] for key in keys] == [0.5, 0.5, ["latin"]]
    assert [data["b"][key] for key in keys] == [1.0, 1.0, ["latin"]]
    apart = reports_as_json({"a": part, "b": Report({"greek": {"accuracy": 1.0}})})
    assert [apart["a"][key] for key in keys] == [None, None, []]
    both = reports_as_json({"a": report(50, 60), "b": report(50)}, Intervals())
    assert both["a"]["intervals"]["average"] == both["a"]["intervals"]["tasks"]["latin"]


# --- the command ------------------------------------------------------------------------------


def test_directories_stand_side_by_side(tmp_path: Path) -> None:
    base = {"latin": {"accuracy": 0.125}}
    whole = Report(PLAIN.tasks, Reference(base, {"latin": {"accuracy": 1.0}}))
    first, second = (
        write_report(tmp_path / "first", whole),
        write_report(tmp_path / "second", PLAIN),
    )
    headings = call_for_output(first, second).splitlines()[0].split()
    assert headings == ["task", "base", "first", "second", "experts"]
    elsewhere = write_report(first / "third", whole)
    assert str(elsewhere) in call_for_output(first, elsewhere)
    over = {"averaged_over": ["latin", "greek"]}
    assert json.loads(call_for_output("--json", first, second)) == {
        str(first): {**whole.as_json(), **over},
        str(second): {**PLAIN.as_json(), **over},
    }
    assert call_for_error(tmp_path).exit_code == RecipeError.exit_code
    assert call().exit_code == RecipeError.exit_code


def test_directories_without_a_report_are_skipped_by_name(tmp_path: Path) -> None:
    good = write_report(tmp_path / "good", PLAIN)
    damaged = write_report(tmp_path / "damaged", PLAIN)
    (damaged / "report.json").write_text("{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    done = call(*sorted(tmp_path.iterdir()), "--json")
    assert list(json.loads(done.stdout)) == [str(good)]
    lines = done.stderr.splitlines()
    names = (f"{damaged}/report.json", f"{tmp_path}/empty", f"{tmp_path}/notes.txt")
    assert len(lines) == len(names)
    for line, name in zip(lines, names, strict=True):
        assert line.startswith("skipped: ")
        assert name in line
    error = call_for_error(tmp_path / "empty", tmp_path / "notes.txt")
    assert error.exit_code == 2
    assert "empty has no report.json\n" in str(error)
    assert f"not a directory: {tmp_path}/notes.txt\n" in str(error)


def test_a_path_that_the_system_refuses_is_a_disk_error(tmp_path: Path) -> None:
    error = call_for_error(write_report(tmp_path / "good", PLAIN), "x" * 300)
    assert (error.exit_code, error.message) == (6, f"{'x' * 300}: File name too long")


def test_experts_below_the_base_get_a_warning(tmp_path: Path) -> None:
    done = call(write_report(tmp_path / "rotated", ROTATED), "--format", "csv")
    assert done.stderr.startswith("warning: experts and tasks probably do not belong together: ")
    assert "latin (30.0, base 50.0), by the figures alone" in done.stderr
    assert done.stderr.count("\n") == 1


def test_two_runs_are_compared_on_the_same_examples(tmp_path: Path) -> None:
    first, second = (
        write_report(tmp_path / "a", report(50)),
        write_report(tmp_path / "b", report(60)),
    )
    lines = call_for_output(first, second).splitlines()
    assert lines[0].split() == ["task", "a", "b", "experts"]
    start = lines.index("b - a, on the same examples")
    assert lines[start + 1].split() == ["task", "difference", "95", "%", "interval", "p"]
    assert lines[start + 2].split() == ["latin", "+10.0", "+5.0", "to", "+16.0", "0.002"]
    assert lines[start + 3] == "exact McNemar; p-values are not corrected for multiple tests"
    data = json.loads(call_for_output(first, second, "--json"))
    assert "paired" not in data[str(first)]
    paired = data[str(second)]["paired"]
    assert (paired["against"], paired["average"]) == (str(first), None)
    assert paired["tasks"]["latin"]["p"] == pytest.approx(2 / 2**10)
    third = write_report(tmp_path / "c", report(70, 60))
    assert "same examples" not in call_for_output(first, second, third)
    assert "\na - c, on the same examples\n" in call_for_output(
        first, second, "--paired", third, first
    )
    fourth = write_report(tmp_path / "d", report(60, 90))
    average = call_for_output(third, fourth).splitlines()
    assert average[-2].split()[:2] == ["average", "+10.0"]
    assert average[-1].startswith("tasks: exact McNemar; average: sign-flip test; p-values ")
    one = {"latin": Measured({"accuracy": 0.0}, [0]), "greek": Measured({"accuracy": 0.0}, [0])}
    fifth = write_report(tmp_path / "e", Report(one))
    right = Report({task: Measured({"accuracy": 1.0}, [1]) for task in one})
    tiny = call_for_output(fifth, write_report(tmp_path / "f", right)).splitlines()
    assert tiny[-2].split() == ["average", "+100.0", "0.500"]
    assert tiny[-1].endswith("; no interval: too few examples differ")


def test_the_average_of_some_tasks_is_named_by_them(tmp_path: Path) -> None:
    """A task without outcomes counts in the averages of the table, and in no paired test."""
    directories = []
    for name, right, score in (("a", 50, 0.9), ("b", 60, 0.1)):
        tasks = report(right, right).tasks
        directories.append(tmp_path / name)
        write_report(directories[-1], Report({**tasks, "tail": {"accuracy": score}}))
    lines = call_for_output(*directories).splitlines()
    assert lines[-2].split()[:4] == ["average", "over", "latin,", "greek"]
    data = json.loads(call_for_output(*directories, "--json"))
    assert data[str(directories[1])]["paired"]["average"]["over"] == ["latin", "greek"]


def test_a_pair_that_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    first, second = (
        write_report(tmp_path / "a", report(50)),
        write_report(tmp_path / "b", report(60)),
    )
    other = write_report(tmp_path / "other", Report({"latin": {"accuracy": 0.5}}))
    error = call_for_error(first, "--paired", first, other)
    assert (error.exit_code, "no outcomes of the same test examples" in str(error)) == (2, True)
    assert "a twice\n" in str(call_for_error(first, "--paired", first, first))
    error = call_for_error(first, "--paired", first, second, "--format", "csv")
    assert (error.exit_code, "--paired does not support --format csv" in str(error)) == (2, True)


def test_outcomes_of_another_report_are_named(tmp_path: Path) -> None:
    damaged, good = (
        write_report(tmp_path / "a", report(50)),
        write_report(tmp_path / "b", report(60)),
    )
    (damaged / "outcomes.json").write_text((good / "outcomes.json").read_text())
    error = call_for_error(damaged, "--intervals")
    assert error.exit_code == FusionError.exit_code
    assert "a/outcomes.json does not match the report.json in the same directory" in str(error)
    assert call_for_output(damaged)  # without --intervals


def test_runs_that_differ_only_in_the_seed_are_averaged(tmp_path: Path) -> None:
    recipe = "algorithm: {{name: dare, density: {}}}\nseed: {}\noutput: {{path: {}}}\n"
    for number, right in enumerate((50, 60, 70)):
        write_report(tmp_path / f"s{number}", report(right), recipe.format(0.5, number, number))
    write_report(tmp_path / "again", report(10), recipe.format(0.5, 0, "x"))
    write_report(tmp_path / "other", report(20), recipe.format(0.6, 0, "x"))
    write_report(tmp_path / "no-recipe", report(30))
    directories = sorted(tmp_path.iterdir())
    text = call_for_output(*directories, "--seeds", "--format", "csv", "--sort", "latin")
    rows = {row["model"]: row for row in csv.DictReader(io.StringIO(text))}
    group = rows["again (3 seeds)"]
    assert float(group["latin accuracy"]) == pytest.approx((0.1 + 0.6 + 0.7) / 3)
    assert float(group["latin accuracy low"]) < 0.1
    assert rows["other"]["latin accuracy low"] == ""
    # s0 has the seed of another run
    assert list(rows) == ["s0", "again (3 seeds)", "no-recipe", "other", "experts"]
    assert "±: 95 % intervals over seeds; " in call_for_output(*directories, "--seeds")
    alone = call_for_output(tmp_path / "other", "--seeds")
    assert "no intervals: no two runs differ only in the seed\n" in alone


@pytest.mark.parametrize("form", ["csv", "markdown", "latex", "json", "table"])
def test_every_format_is_printed(tmp_path: Path, form: str) -> None:
    text = call_for_output(write_report(tmp_path / "a\x1b", report(50)), "--format", form)
    assert "\x1b" not in text
    assert ("0.5" if form in {"csv", "json"} else "50.0") in text
