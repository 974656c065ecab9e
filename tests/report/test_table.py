"""Tables for people, papers and programs: intervals, orders, formats, notebooks."""

from __future__ import annotations

import csv
import io
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from fusion_core.contracts.layout import table_of
from fusion_core.contracts.measures import Measured, Metric, Repeated
from fusion_core.contracts.report import Report
from fusion_core.contracts.run import RunResult
from fusion_core.contracts.table import Entry, Figure
from fusion_core.errors import FusionError, RecipeError
from fusion_core.report.data import compared_as_json, report_as_json
from fusion_core.report.drawing import report_tables
from fusion_core.report.formats import as_csv, as_latex, as_markdown
from fusion_core.report.sorting import sort_reports
from fusion_core.report.table import print_reports

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Outcome

BITS = Metric("bits", unit="", higher_is_better=False)


def accuracy(right: int, count: int) -> Measured:
    return Measured({"accuracy": right / count}, [1] * right + [0] * (count - right))


def report(*right: int, **options: Any) -> Report:
    names = ("latin", "greek", "shapes")
    rows = {"experts": [99, 98, 97]}
    return Report(
        {name: accuracy(each, 100) for name, each in zip(names, right, strict=False)},
        experts={n: accuracy(e, 100) for n, e in zip(names, rows["experts"], strict=True)},
        **options,
    )


@pytest.mark.parametrize(
    ("metric", "value", "interval", "text"),
    [
        (Metric("accuracy"), 0.745, None, "74.5"),
        (Metric("accuracy"), 0.745, (0.734, 0.756), "74.5 ±1.1"),
        (Metric("accuracy"), 0.745, (0.733, 0.755), "74.5 ±1.2"),  # the longer side of two alike
        (Metric("accuracy"), 0.99, (0.972, 0.995), "99.0 -1.8+0.5"),
        (BITS, 8.1234, (8.0, 8.2468), "8.123 ±0.123"),
        (BITS, 1234.5, (1200.0, 1269.0), "1234 ±34"),
    ],
)
def test_a_figure_stands_with_its_interval(
    metric: Metric, value: float, interval: Any, text: str
) -> None:
    figure = Figure(value, lambda: interval)
    entry = Entry("x", metric, [figure])
    assert entry.shown(figure, intervals=True) == text
    assert entry.shown(figure) == text.partition(" ")[0]


def drawn(reports: dict[str, Report], width: int, *, intervals: bool = False) -> list[str]:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    for table in report_tables(table_of(reports), width, intervals=intervals):
        console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    return [line.rstrip() for line in lines]


def test_five_models_fit_with_their_intervals_into_80_columns() -> None:
    models = {name: report(60, 70, 80) for name in ("ties", "dare", "sum")}
    lines = drawn(models, 80, intervals=True)
    assert lines[0].split() == ["task", "ties", "dare", "sum", "experts"]
    assert lines[1].split() == ["latin", *["60.0", "±9.8"] * 3, "99.0", "-4.4+0.8"]
    (normalised,) = (line for line in lines if line.startswith("normalised"))
    assert lines[1].index("99.0") == normalised.index("100.0") + 1  # numbers below numbers


def test_more_models_have_a_row_each_in_as_many_parts_as_it_takes() -> None:
    models = {f"outputs/mini8-ties-{number}": report(60, 70, 80) for number in range(9)}
    lines = drawn(models, 68)
    assert lines[1].split() == ["model", "latin", "greek", "s", "ge", "lised", "worst"]
    assert len([line for line in lines if line.startswith("outputs/mini8-ties-")]) == 9
    narrow = drawn(models, 40, intervals=True)
    headings = [line.split() for line in narrow if line.startswith("model")]
    assert [heading for part in headings for heading in part[1:]] == [
        *("latin", "greek", "shapes", "average", "normalised", "worst")
    ]
    assert len([line for line in narrow if "60.0 ±9.8" in line]) == 2 * 9  # worst is latin


def test_intervals_that_there_are_not_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    print_reports({"m": Report({"latin": {"accuracy": 0.5}})}, intervals=True)
    assert "no intervals: nothing is kept of each example" in capsys.readouterr().out
    print_reports({"m": report(50)}, intervals=True)
    assert "intervals over test examples" in capsys.readouterr().out
    seeds = Report({"latin": Repeated([{"accuracy": 0.5}, {"accuracy": 0.6}])})
    print_reports({"m": seeds}, intervals=True)
    assert "55.0 ±63.5" in (out := capsys.readouterr().out)
    assert "intervals over seeds" in out
    print_reports({"m": Report({"latin": Repeated([{"accuracy": 0.5}])})}, intervals=True)
    assert "no two of these runs differ in the seed" in capsys.readouterr().out


def test_formats_have_a_row_a_model() -> None:
    models = {"a_b": report(50, 60), "c|d": report(70, 80)}
    rows = [*csv.reader(io.StringIO(as_csv(table_of(models), intervals=True)))]
    first = dict(zip(rows[0], rows[1], strict=True))
    assert [row[0] for row in rows] == ["model", "a_b", "c|d", "experts"]
    assert (first["latin accuracy"], first["average"], first["worst"]) == ("0.5", "0.55", "0.5")
    low = float(first["latin accuracy low"])
    assert low == pytest.approx(0.4038, abs=1e-4)
    assert float(first["normalised low"]) < float(first["normalised"])
    assert as_markdown(table_of(models)).splitlines()[:4] == [
        "| model | latin | greek | average | normalised | worst |",
        "|---|---:|---:|---:|---:|---:|",
        "| a_b | 50.0 | 60.0 | 55.0 | 55.9 | 50.0 |",
        r"| c\|d | 70.0 | 80.0 | 75.0 | 76.2 | 70.0 |",
    ]
    latex = as_latex(table_of({"a_b": report(50)}), intervals=True).splitlines()
    assert latex[0] == r"\begin{tabular}{lrrr}"
    assert latex[2:5] == [
        r"model & latin & average & normalised \\",
        r"\midrule",
        r"a\_b & 50.0 $\pm$9.6 & 50.0 $\pm$9.6 & 50.5 $\pm$9.5 \\",
    ]


def test_what_is_mixed_names_its_metric() -> None:
    mixed = Report(
        {"wiki": {"bits": 1.0}, "latin": {"accuracy": 0.5}}, metrics={"wiki": {"bits": BITS}}
    )
    assert table_of({"m": mixed}).by_model()[0] == ["model", "wiki (bits)", "latin (accuracy)"]


def test_the_best_comes_first() -> None:
    models = {"a": report(50, 60), "b": report(70, 10), "c": report(60, 30)}
    assert list(sort_reports(models, "latin")) == ["b", "c", "a"]
    assert list(sort_reports(models, "average")) == ["a", "c", "b"]
    assert list(sort_reports({**models, "d": Report({})}, "greek")) == ["a", "c", "b", "d"]
    lower = {"wiki": {"bits": BITS}}
    texts = {
        n: Report({"wiki": {"bits": each}}, metrics=lower) for n, each in (("x", 2.0), ("y", 1.0))
    }
    assert list(sort_reports(texts, "wiki")) == ["y", "x"]
    with pytest.raises(RecipeError, match="nothing is called 'avrage' here\ndid you mean average"):
        sort_reports(models, "avrage")


def test_json_has_both_ends() -> None:
    found = report_as_json(report(50, 60), intervals=True)["intervals"]
    assert found["tasks"]["latin"] == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert found["average"] == pytest.approx((0.48, 0.62), abs=0.015)
    assert found["base"] == {}
    both = compared_as_json({"a": report(50, 60), "b": report(50)}, intervals=True)
    assert both["a"]["intervals"]["average"] == pytest.approx((0.4, 0.6), abs=0.02)  # latin alone


def test_notebooks_show_the_table() -> None:
    shown = Report({"<latin>": {"accuracy": 0.5}}, transductive=True)._repr_html_()
    assert shown.startswith("<table><caption>accuracy in %; transductive: ")
    assert (
        "<tr><th>task</th><th>merged</th></tr><tr><td>&lt;latin&gt;</td><td>50.0</td></tr>" in shown
    )
    result: Any = RunResult(None, None, None, report(50), {})  # type: ignore[arg-type]
    assert result._repr_html_() == f"{report(50)._repr_html_()}<p>merged: in memory</p>"


def test_reports_become_data_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    frame = report(50, 60).to_dataframe()
    assert list(frame.columns) == ["metric", "merged", "experts", "low", "high"]
    assert frame.loc["greek", "merged"] == 0.6
    assert pandas.isna(Report({"a": {"x": 1.0}}, {"b": {"x": 1.0}}).to_dataframe().loc["a", "base"])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(FusionError, match="needs pandas, which is not here\nInstall it"):
        report(50).to_dataframe()


# --- fuse compare ---------------------------------------------------------------------------------


def written(directory: Path, found: Report, recipe: str = "") -> Path:
    directory.mkdir()
    (directory / "report.json").write_text(json.dumps(found.as_json()))
    (directory / "outcomes.json").write_text(json.dumps(found.outcomes_as_json()))
    if recipe:
        (directory / "recipe.yaml").write_text(recipe)
    return directory


def test_two_runs_are_compared_on_the_same_examples(
    tmp_path: Path, fuse: Callable[..., Outcome]
) -> None:
    first, second = written(tmp_path / "a", report(50)), written(tmp_path / "b", report(60))
    said = fuse("compare", first, second).out.splitlines()
    assert said[0].split() == ["task", "a", "b", "experts"]
    start = said.index("b - a, on the same examples")
    assert said[start + 2].split() == ["latin", "+10.0", "+5.0", "to", "+16.0", "0.002"]
    found = json.loads(fuse("compare", first, second, "--json").out)
    assert "paired" not in found[str(first)]
    paired = found[str(second)]["paired"]
    assert (paired["against"], paired["average"]) == (str(first), None)
    assert paired["tasks"]["latin"]["p"] == pytest.approx(2 / 2**10)
    third = written(tmp_path / "c", report(70))
    assert "same examples" not in fuse("compare", first, second, third).out
    asked = fuse("compare", first, second, third, "--paired", third, first).out
    assert "\na - c, on the same examples\n" in asked
    other = written(tmp_path / "d", Report({"latin": {"accuracy": 0.5}}))
    (other / "outcomes.json").unlink()
    refused = fuse("compare", first, "--paired", first, other)
    assert (refused.code, "no test examples in common" in refused.err) == (2, True)
    assert "a twice\n" in fuse("compare", first, "--paired", first, first).err
    refused = fuse("compare", first, "--paired", first, second, "--format", "csv")
    assert (refused.code, "--paired has no --format csv" in refused.err) == (2, True)


def test_outcomes_of_another_report_are_named(tmp_path: Path, fuse: Callable[..., Outcome]) -> None:
    damaged, good = written(tmp_path / "a", report(50)), written(tmp_path / "b", report(60))
    (damaged / "outcomes.json").write_text((good / "outcomes.json").read_text())
    done = fuse("compare", damaged, "--intervals")
    assert done.code == FusionError.exit_code
    assert "a/outcomes.json does not go with the report.json beside it" in done.err
    assert fuse("compare", damaged).code == 0  # which needs none


def test_runs_that_differ_in_the_seed_alone_are_one(
    tmp_path: Path, fuse: Callable[..., Outcome]
) -> None:
    recipe = "algorithm: {{name: dare, density: {}}}\nseed: {}\noutput: {{path: {}}}\n"
    for number, right in enumerate((50, 60, 70)):
        written(tmp_path / f"s{number}", report(right), recipe.format(0.5, number, number))
    written(tmp_path / "again", report(10), recipe.format(0.5, 0, "x"))
    written(tmp_path / "other", report(20), recipe.format(0.6, 0, "x"))
    written(tmp_path / "no-recipe", report(30))
    done = fuse(
        "compare", *sorted(tmp_path.iterdir()), "--seeds", "--format", "csv", "--sort", "latin"
    )
    rows = {row["model"]: row for row in csv.DictReader(io.StringIO(done.out))}
    group = rows["again (3 seeds)"]
    assert float(group["latin accuracy"]) == pytest.approx((0.1 + 0.6 + 0.7) / 3)
    assert float(group["latin accuracy low"]) < 0.1
    assert rows["other"]["latin accuracy low"] == ""
    # s0 has the seed of another run
    assert list(rows) == ["s0", "again (3 seeds)", "no-recipe", "other", "experts"]


@pytest.mark.parametrize("form", ["csv", "markdown", "latex", "json"])
def test_every_format_is_printed(tmp_path: Path, fuse: Callable[..., Outcome], form: str) -> None:
    done = fuse("compare", written(tmp_path / "a\x1b", report(50)), "--format", form)
    assert done.code == 0
    assert "\x1b" not in done.out
    assert ("0.5" if form in {"csv", "json"} else "50.0") in done.out
