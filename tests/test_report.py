from __future__ import annotations

import pytest

from fusion_core.report.table import notes, print_report
from fusion_core.task_pool import Published, Report

TASKS = {"latin": {"accuracy": 0.5, "loss": 9.0}, "greek": {"accuracy": 0.25}}
PRETRAINED = {"latin": {"accuracy": 0.125}, "greek": {"accuracy": 0.0}}
INDIVIDUAL = {"latin": {"accuracy": 1.0}, "greek": {"accuracy": 0.5}}


def printed(report: Report, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    print_report(report, "ties")
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_the_table_has_a_row_a_task_and_the_averages(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(Report(TASKS, PRETRAINED, INDIVIDUAL), capsys)
    assert lines[:4] == [
        ["task", "pretrained", "ties", "individual"],
        ["latin", "12.5", "50.0", "100.0"],
        ["greek", "0.0", "25.0", "50.0"],
        ["average", "6.2", "37.5", "75.0"],
    ]
    assert " ".join(lines[4]) == "accuracy in %; on average 50.0 of the individual experts'"


def test_columns_without_numbers_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(Report(TASKS), capsys)[0] == ["task", "ties"]


def test_a_task_without_an_expert_has_an_empty_cell(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(Report(TASKS, individual={"latin": {"accuracy": 1.0}}), capsys)
    assert lines[1] == ["latin", "50.0", "100.0"]
    assert lines[2] == ["greek", "25.0"]
    assert lines[4] == ["accuracy", "in", "%"]


@pytest.mark.parametrize(("transductive", "count"), [(None, 1), (False, 1), (True, 2)])
def test_a_transductive_number_is_marked(transductive: bool | None, count: int) -> None:  # noqa: FBT001
    assert len(notes(Report(TASKS, transductive=transductive))) == count


PUBLISHED = Published(
    "tiny experts", "a paper", {"theirs": {"latin": 0.25, "greek": 0.0}, "part": {"latin": 0.75}}
)


def test_published_rows_stand_beside_this_run_by_their_averages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = {**TASKS, "shapes": {"accuracy": 1.0}}
    lines = printed(Report(more, published=PUBLISHED), capsys)
    start = lines.index(["method", "latin", "greek", "average"])
    assert lines[start + 1 : start + 3] == [
        ["theirs", "25.0", "0.0", "12.5"],
        ["ties", "(this", "run)", "50.0", "25.0", "37.5"],
    ]
    assert " ".join(lines[start + 3]) == "published: a paper"
    assert " ".join(lines[start + 4]) == "of tiny experts"


def test_figures_of_other_tasks_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    alone = Report({"shapes": {"accuracy": 1.0}}, published=PUBLISHED)
    assert ["method"] not in [line[:1] for line in printed(alone, capsys)]
