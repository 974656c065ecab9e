from __future__ import annotations

import pytest

from fusion_core.report.table import notes, print_report
from fusion_core.task_pool import Report

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
