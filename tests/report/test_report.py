from __future__ import annotations

import json
import math
from typing import Any

import pytest

from fusion_core.contracts.measurements import Metric, Reference
from fusion_core.contracts.report import Published, Report
from fusion_core.report.table import print_reports, report_notes

TASKS = {"latin": {"accuracy": 0.5, "loss": 9.0}, "greek": {"accuracy": 0.25}}
BASE = {"latin": {"accuracy": 0.125}, "greek": {"accuracy": 0.0}}
EXPERTS = {"latin": {"accuracy": 1.0}, "greek": {"accuracy": 0.5}}


def print_report(report: Report, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    print_reports({"ties": report})
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_the_table_has_one_row_per_task_and_the_averages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = print_report(Report(TASKS, Reference(BASE, EXPERTS)), capsys)
    assert lines[:6] == [
        ["task", "base", "ties", "experts"],
        ["latin", "12.5", "50.0", "100.0"],
        ["greek", "0.0", "25.0", "50.0"],
        ["average", "6.2", "37.5", "75.0"],
        ["normalised", "6.2", "50.0", "100.0"],
        ["worst", "0.0", "25.0", "50.0"],
    ]
    assert " ".join(lines[6]) == "accuracy in %; normalised: in % of the experts', on average"


def test_columns_without_numbers_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_report(Report(TASKS), capsys)[0] == ["task", "ties"]


def test_a_task_without_an_expert_has_an_empty_cell(capsys: pytest.CaptureFixture[str]) -> None:
    lines = print_report(Report(TASKS, Reference(experts={"latin": {"accuracy": 1.0}})), capsys)
    assert lines[1] == ["latin", "50.0", "100.0"]
    assert lines[2] == ["greek", "25.0"]
    assert lines[5] == ["accuracy", "in", "%"]


@pytest.mark.parametrize(("transductive", "count"), [(None, 1), (False, 1), (True, 2)])
def test_a_transductive_number_is_marked(transductive: bool | None, count: int) -> None:  # noqa: FBT001
    assert len(report_notes({"m": Report(TASKS, transductive=transductive)})) == count


PUBLISHED = Published(
    "tiny experts", "a paper", {"theirs": {"latin": 0.25, "greek": 0.0}, "part": {"latin": 0.75}}
)


def test_published_rows_and_this_run_are_sorted_by_average(
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = {**TASKS, "shapes": {"accuracy": 1.0}}
    lines = print_report(Report(more, published=PUBLISHED), capsys)
    start = lines.index(["method", "latin", "greek", "average"])
    assert lines[start + 1 : start + 3] == [
        ["theirs", "25.0", "0.0", "12.5"],
        ["ties", "(this", "run)", "50.0", "25.0", "37.5"],
    ]
    assert " ".join(lines[start + 3]) == "published: a paper"
    assert " ".join(lines[start + 4]) == "of tiny experts"


def test_figures_of_other_tasks_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    alone = Report({"shapes": {"accuracy": 1.0}}, published=PUBLISHED)
    assert ["method"] not in [line[:1] for line in print_report(alone, capsys)]


def side_by_side(capsys: pytest.CaptureFixture[str], **reports: Report) -> list[list[str]]:
    print_reports(reports)
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_reports_stand_side_by_side_and_share_what_is_equal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = {"latin": {"accuracy": 0.75}, "greek": {"accuracy": 0.5}}
    lines = side_by_side(
        capsys,
        ties=Report(TASKS, Reference(BASE, EXPERTS), published=PUBLISHED),
        ada=Report(other, Reference(BASE, EXPERTS), transductive=True, measured_on="a half"),
    )
    assert lines[:6] == [
        ["task", "base", "ties", "ada", "experts"],
        ["latin", "12.5", "50.0", "75.0", "100.0"],
        ["greek", "0.0", "25.0", "50.0", "50.0"],
        ["average", "6.2", "37.5", "62.5", "75.0"],
        ["normalised", "6.2", "50.0", "87.5", "100.0"],
        ["worst", "0.0", "25.0", "50.0", "50.0"],
    ]
    text_lines = [" ".join(line) for line in lines[6:]]
    assert text_lines[0] == "accuracy in %; normalised: in % of the experts', on average"
    assert text_lines[1].startswith("transductive (ada): ")
    assert text_lines[2] == "measured on a half (ada)"
    start = text_lines.index("method latin greek average")
    assert text_lines[start + 1 : start + 4] == [
        "theirs 25.0 0.0 12.5",
        "ties (this run) 50.0 25.0 37.5",
        "ada (this run) 75.0 50.0 62.5",
    ]


def test_a_base_without_a_number_keeps_its_column(capsys: pytest.CaptureFixture[str]) -> None:
    base = {**BASE, "latin": {"accuracy": math.nan}}
    (headings, *_) = side_by_side(capsys, ties=Report(TASKS, Reference(base, EXPERTS)))
    assert headings == ["task", "base", "ties", "experts"]


def test_every_family_of_checkpoints_has_a_table_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    large = Published("large experts", "a paper", {"ours": {"latin": 1.0, "greek": 1.0}})
    lines = side_by_side(
        capsys,
        tiny=Report(TASKS, published=PUBLISHED),
        large=Report(EXPERTS, published=large),
        again=Report(EXPERTS, published=PUBLISHED),
    )
    text_lines = [" ".join(line) for line in lines]
    first = text_lines.index("method latin greek average")
    second = text_lines.index("method latin greek average", first + 1)
    assert text_lines[first + 1 : first + 6] == [
        "theirs 25.0 0.0 12.5",
        "tiny (this run) 50.0 25.0 37.5",
        "again (this run) 100.0 50.0 75.0",
        "published: a paper",
        "of tiny experts",
    ]
    assert text_lines[second + 1 : second + 5] == [
        "large (this run) 100.0 50.0 75.0",
        "ours 100.0 100.0 100.0",
        "published: a paper",
        "of large experts",
    ]


def test_averages_are_over_the_tasks_that_all_have(capsys: pytest.CaptureFixture[str]) -> None:
    more = {**TASKS, "shapes": {"accuracy": 1.0}}
    reports = {
        "a": Report(more, Reference(experts={**EXPERTS, "shapes": {"accuracy": 0.5}})),
        "b": Report({"latin": {"accuracy": 1.0}}),
    }
    lines = side_by_side(capsys, **reports)
    assert lines[:6] == [
        ["task", "a", "b", "experts"],
        ["latin", "50.0", "100.0", "100.0"],
        ["greek", "25.0", "50.0"],
        ["shapes", "100.0", "50.0"],
        ["average", "50.0", "100.0", "100.0"],
        ["normalised", "50.0", "100.0"],
    ]
    assert " ".join(lines[7]) == "averages are over the tasks that all have: latin"


def test_without_a_common_task_there_is_no_average(capsys: pytest.CaptureFixture[str]) -> None:
    lines = side_by_side(
        capsys, a=Report({"x": {"accuracy": 1.0}}), b=Report({"y": {"accuracy": 1.0}})
    )
    assert lines[3] == ["average"]
    assert " ".join(lines[5]).endswith("that all have: none")


def test_different_bases_have_a_column_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = side_by_side(
        capsys, a=Report(TASKS, Reference(BASE)), b=Report(TASKS, Reference(TASKS))
    )
    assert lines[0] == ["task", "base", "of", "a", "base", "of", "b", "a", "b"]


def test_an_average_of_fewer_tasks_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lines = print_report(Report(TASKS, Reference(experts={"latin": {"accuracy": 1.0}})), capsys)
    assert lines[3] == ["average", "37.5"]


# --- units and directions -----------------------------------------------------------------------

PERPLEXITY = Metric("perplexity", unit="", higher_is_better=False)
TEXTS = Report(
    {"wiki": {"perplexity": 8.0}, "code": {"perplexity": 4.0}},
    Reference(
        {"wiki": {"perplexity": 1234.56}, "code": {"perplexity": float("inf")}},
        {"wiki": {"perplexity": 6.0}, "code": {"perplexity": 2.0}},
    ),
    metrics={task: {"perplexity": PERPLEXITY} for task in ("wiki", "code")},
)
BOTH = Report(
    {"wiki": {"perplexity": 8.0}, "latin": {"accuracy": 0.5}},
    Reference(experts={"wiki": {"perplexity": 6.0}, "latin": {"accuracy": 1.0}}),
    metrics={"wiki": {"perplexity": PERPLEXITY}},
    published=PUBLISHED,
)


def test_other_units_are_not_shown_in_percent(capsys: pytest.CaptureFixture[str]) -> None:
    lines = print_report(TEXTS, capsys)
    assert lines[1:6] == [
        ["wiki", "1235", "8.000", "6.000"],
        ["code", "inf", "4.000", "2.000"],
        ["average", "inf", "6.000", "4.000"],
        ["normalised", "0.2", "62.5", "100.0"],
        ["worst", "inf", "8.000", "6.000"],
    ]
    note = "perplexity, lower is better; normalised: in % of the experts', on average"
    assert " ".join(lines[6]) == note


def test_different_units_are_named_and_not_averaged(capsys: pytest.CaptureFixture[str]) -> None:
    assert (BOTH.average, BOTH.normalised_average) == (None, 0.625)
    lines = [" ".join(line) for line in print_report(BOTH, capsys)]
    assert lines[:6] == [
        "task metric ties experts",
        "wiki perplexity, lower is better 8.000 6.000",
        "latin accuracy in % 50.0 100.0",
        "normalised 62.5 100.0",
        "normalised: in % of the experts', on average",
        "no average: the tasks are measured in different units",
    ]
    assert lines[7:9] == ["method latin average", "theirs 25.0 25.0"]  # what is published


def test_a_task_with_two_main_metrics_has_two_rows(capsys: pytest.CaptureFixture[str]) -> None:
    lines = side_by_side(capsys, a=Report({"wiki": {"accuracy": 0.5}}), b=BOTH)
    assert [line[0] for line in lines[1:5]] == ["wiki", "wiki", "latin", "average"]
    assert lines[4] == ["average"]


def test_noted_metrics_have_rows_if_nonzero(capsys: pytest.CaptureFixture[str]) -> None:
    noted = {"invalid": Metric("invalid", higher_is_better=False, is_noted=True)}
    report = Report(
        {"sums": {"exact": 0.5, "invalid": 0.25}, "dates": {"exact": 0.75, "invalid": 0.0}},
        Reference(
            experts={
                "sums": {"exact": 1.0, "invalid": 0.0},
                "dates": {"exact": 1.0, "invalid": 0.0},
            }
        ),
        metrics={"sums": noted, "dates": noted},
    )
    assert Report.from_json(report.as_json()).metrics == report.metrics
    assert [" ".join(line) for line in print_report(report, capsys)] == [
        "task metric ties experts",
        "sums exact in % 50.0 100.0",
        "dates exact in % 75.0 100.0",
        "sums invalid in %, lower is better 25.0 0.0",
        "average 62.5 100.0",
        "normalised 62.5 100.0",
        "worst 50.0 100.0",
        "exact in %; normalised: in % of the experts', on average",
    ]


@pytest.mark.parametrize(
    ("value", "expert", "up", "down"),
    [(1.0, 2.0, 0.5, 2.0), (0.0, 2.0, 0.0, None), (2.0, 0.0, None, 0.0), (-1.0, -2.0, None, None)],
)
def test_a_ratio_says_how_good_a_value_is(
    value: float, expert: float, up: float | None, down: float | None
) -> None:
    assert Metric("x").ratio(value, expert) == up
    assert PERPLEXITY.ratio(value, expert) == down


def test_a_normalised_average_needs_an_expert_for_every_task() -> None:
    assert Report(TASKS, Reference(experts=EXPERTS)).normalised_average == 0.5
    for experts in ({"latin": {"accuracy": 1.0}}, {**EXPERTS, "greek": {"accuracy": 0.0}}, {}):
        assert Report(TASKS, Reference(experts=experts)).normalised_average is None


def test_nonfinite_values_are_stored_and_read_back() -> None:
    tasks = {"wiki": {"perplexity": float("inf"), "loss": float("nan"), "gain": -float("inf")}}
    content = json.loads(json.dumps(Report(tasks).as_json(), allow_nan=False))
    assert content["tasks"] == {
        "wiki": {"perplexity": "Infinity", "loss": "NaN", "gain": "-Infinity"}
    }
    assert str(Report.from_json(content).tasks) == str(tasks)


def test_an_infinite_normalised_average_is_stored() -> None:
    report = Report({"wiki": {"gain": float("inf")}}, Reference(experts={"wiki": {"gain": 1.0}}))
    content = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert content["normalised_average"] == "Infinity"


def test_the_content_of_a_report() -> None:
    assert Report({"wiki": {"perplexity": 8.0}}, metrics=TEXTS.metrics).as_json() == {
        "schema": 2,
        "average": 8.0,
        "normalised_average": None,
        "experts_below_base": {},
        "tasks": {"wiki": {"perplexity": 8.0}},
        "metrics": {"wiki": {"perplexity": {"unit": "", "higher_is_better": False}}},
        "transductive": None,
        "measured_on": None,
        "reference": {},
        "remembered": {},
    }


def test_a_report_of_schema_1_is_read() -> None:
    old = {
        "schema": 1,
        "average": 0.375,
        "normalised_average": 0.5,
        "tasks": TASKS,
        "transductive": True,
        "measured_on": None,
        "reference": {"pretrained": BASE, "individual": EXPERTS},
    }
    assert Report.from_json(old) == Report(TASKS, Reference(BASE, EXPERTS), transductive=True)


# --- reports in files ----------------------------------------------------------------------------

WHOLE = Report(TASKS, Reference(BASE, EXPERTS), True, "a half", PUBLISHED, {}, {"base": ("latin",)})


@pytest.mark.parametrize("report", [WHOLE, Report(TASKS), TEXTS, BOTH])
def test_a_report_reads_back_as_it_was(report: Report) -> None:
    assert Report.from_json(json.loads(json.dumps(report.as_json()))) == report


@pytest.mark.parametrize(
    "damage",
    [
        "",
        [],
        {**WHOLE.as_json(), "schema": 3},
        {**WHOLE.as_json(), "tasks": {}},
        {**WHOLE.as_json(), "tasks": {"latin": {}}},
        {**WHOLE.as_json(), "tasks": {"latin": {"accuracy": "good"}}},
        {**WHOLE.as_json(), "tasks": {"latin": 0.5}},
        {**WHOLE.as_json(), "reference": {"experts": {"latin": {}}}},
        {**WHOLE.as_json(), "reference": 1},
        {**WHOLE.as_json(), "metrics": {"latin": {"accuracy": {"unit": 1}}}},
        {**WHOLE.as_json(), "published": {"family": "x"}},
    ],
    ids=lambda damage: str(damage)[:20],
)
def test_a_damaged_report_is_refused(damage: Any) -> None:
    with pytest.raises(ValueError, match=r"expected schema 2|missing tasks|validation error"):
        Report.from_json(damage)


def test_the_choice_of_options_is_stored_and_noted() -> None:
    report = Report(TASKS, chosen="by a sweep of 30 runs, without labels")
    assert Report.from_json(json.loads(json.dumps(report.as_json()))).chosen == report.chosen
    note = "options chosen by a sweep of 30 runs, without labels"
    assert note in report_notes({"ties": report})
    assert f"{note} (ties)" in report_notes({"ties": report, "dare": Report(TASKS)})
    assert "chosen" not in Report(TASKS).as_json()


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (Metric("accuracy"), "accuracy in %"),
        (Metric("perplexity", unit="", higher_is_better=False), "perplexity, lower is better"),
        (
            Metric("bits_per_byte", "bits per byte", higher_is_better=False),
            "bits_per_byte, lower is better",
        ),
        (Metric("length", "m"), "length in m"),
    ],
)
def test_a_metric_says_its_unit_unless_its_name_does(metric: Metric, text: str) -> None:
    assert str(metric) == text
