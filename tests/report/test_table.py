"""The table of one or several reports: width, intervals, notebooks."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from fusion_core.contracts.intervals import Intervals
from fusion_core.contracts.measurements import Measured, Metric, Reference
from fusion_core.contracts.report import Report
from fusion_core.contracts.run import RunResult
from fusion_core.contracts.table import Entry, Figure
from fusion_core.contracts.table_layout import build_table
from fusion_core.report.rich_tables import report_tables
from fusion_core.report.table import print_reports

BITS = Metric("bits", unit="", higher_is_better=False)


def accuracy(right: int, count: int) -> Measured:
    return Measured({"accuracy": right / count}, [1] * right + [0] * (count - right))


def report(*right: int, **options: Any) -> Report:
    names = ("latin", "greek", "shapes")
    rows = {"experts": [99, 98, 97]}
    return Report(
        {name: accuracy(count, 100) for name, count in zip(names, right, strict=False)},
        Reference(
            experts={n: accuracy(e, 100) for n, e in zip(names, rows["experts"], strict=True)}
        ),
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
def test_a_figure_is_formatted_with_its_interval(
    metric: Metric, value: float, interval: Any, text: str
) -> None:
    figure = Figure(value, lambda: interval)
    entry = Entry("x", metric, [figure])
    assert entry.shown(figure) == text
    assert entry.shown(Figure(value)) == text.partition(" ")[0]


def draw(reports: dict[str, Report], width: int, *, intervals: bool = False) -> list[str]:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    over = Intervals() if intervals else None
    for table in report_tables(build_table(reports, over), width):
        console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    return [line.rstrip() for line in lines]


def test_five_models_fit_with_their_intervals_into_80_columns() -> None:
    models = {name: report(60, 70, 80) for name in ("ties", "dare", "sum")}
    lines = draw(models, 80, intervals=True)
    assert lines[0].split() == ["task", "ties", "dare", "sum", "experts"]
    assert lines[1].split() == ["latin", *["60.0", "±9.8"] * 3, "99.0", "-4.4+0.8"]
    (normalised,) = (line for line in lines if line.startswith("normalised"))
    assert lines[1].index("99.0") == normalised.index("100.0") + 1  # numbers below numbers


def test_many_models_have_one_row_each_in_several_parts() -> None:
    models = {f"outputs/mini8-ties-{number}": report(60, 70, 80) for number in range(9)}
    lines = draw(models, 68)
    assert lines[1].split() == ["model", "latin", "greek", "s", "ge", "lised", "worst"]
    assert len([line for line in lines if line.startswith("outputs/mini8-ties-")]) == 9
    narrow = draw(models, 40, intervals=True)
    headings = [line.split() for line in narrow if line.startswith("model")]
    assert [heading for part in headings for heading in part[1:]] == [
        *("latin", "greek", "shapes", "average", "normalised", "worst")
    ]
    assert len([line for line in narrow if "60.0 ±9.8" in line]) == 2 * 9  # worst is latin


def test_a_note_explains_the_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    print_reports({"m": Report({"latin": {"accuracy": 0.5}})}, intervals=Intervals())
    assert "no intervals: no outcomes of single examples are stored" in capsys.readouterr().out
    print_reports({"m": report(50)}, intervals=Intervals())
    output = capsys.readouterr().out
    assert "50.0 ±9.6" in output
    assert "intervals over test examples" in output
    print_reports({"m": report(50)})
    assert "interval" not in capsys.readouterr().out


def test_mixed_tables_name_the_metrics() -> None:
    mixed = Report(
        {"wiki": {"bits": 1.0}, "latin": {"accuracy": 0.5}}, metrics={"wiki": {"bits": BITS}}
    )
    assert build_table({"m": mixed}).by_model()[0] == [
        "model",
        "wiki (bits, lower is better)",
        "latin (accuracy in %)",
    ]


def test_json_has_both_ends() -> None:
    intervals = report(50, 60).as_json(Intervals())["intervals"]
    assert intervals["tasks"]["latin"] == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert intervals["average"] == pytest.approx((0.48, 0.62), abs=0.015)
    assert intervals["base"] == {}
    assert intervals["normalised_average"][0] < report(50, 60).normalised_average
    assert "intervals" not in report(50).as_json()


def test_notebooks_show_the_table() -> None:
    html = Report({"<latin>": {"accuracy": 0.5}}, transductive=True)._repr_html_()
    assert html.startswith("<table><caption>accuracy in %; transductive: ")
    assert (
        "<tr><th>task</th><th>merged</th></tr><tr><td>&lt;latin&gt;</td><td>50.0</td></tr>" in html
    )
    result: Any = RunResult(None, None, None, report(50), {})  # type: ignore[arg-type]
    assert result._repr_html_() == f"{report(50)._repr_html_()}<p>merged: in memory</p>"


def test_moved_methods_name_their_replacements() -> None:
    with pytest.raises(ImportError, match=r"use fusion_report\.plot \(pip install fusion-report\)"):
        report(50).plot()
    with pytest.raises(ImportError, match=r"use fusion_report\.to_dataframe "):
        report(50).to_dataframe()
    result: Any = RunResult(None, None, None, report(50), {})  # type: ignore[arg-type]
    with pytest.raises(ImportError, match=r"RunResult\.plot moved: use fusion_report\.plot "):
        result.plot()
