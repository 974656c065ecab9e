"""Read reports from directories, and name damaged ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from fusion_core import Measured, Reference, Report
from fusion_core.errors import FusionError, RecipeError
from fusion_report import read_report
from fusion_report.comparison.seeds import average_seeds

if TYPE_CHECKING:
    from pathlib import Path

TASKS = {"latin": {"accuracy": 0.5, "loss": 9.0}, "greek": {"accuracy": 0.25}}
WHOLE = Report(
    TASKS, Reference({"latin": {"accuracy": 0.125}}, {"latin": {"accuracy": 1.0}})
).as_json()


def write_report(directory: Path, content: Any) -> Path:
    directory.mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / "report.json").write_text(text)
    return directory


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[" * 100_000,
        "[]",
        {**WHOLE, "schema": 3},
        {**WHOLE, "tasks": {}},
        {**WHOLE, "tasks": {"latin": {"accuracy": "good"}}},
        {**WHOLE, "reference": 1},
    ],
    ids=lambda damage: str(damage)[:20],
)
def test_a_damaged_report_is_named(tmp_path: Path, damage: Any) -> None:
    with pytest.raises(
        FusionError, match=r"report\.json is not a valid report: .*\n.*fuse evaluate"
    ):
        read_report(write_report(tmp_path / "out", damage))


def test_a_directory_without_a_report_says_how_to_measure(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"has no report\.json\nMeasure the model with a pool .* --pool"
    ):
        read_report(tmp_path)
    (tmp_path / "recipe.yaml").write_text("task_pool: mini8")
    with pytest.raises(
        RecipeError, match=r"has no report\.json\nMeasure the model first: fuse evaluate"
    ):
        read_report(tmp_path)
    with pytest.raises(RecipeError, match=r"not a directory: .*nowhere"):
        read_report(tmp_path / "nowhere")


def on_examples(expert: int) -> Report:
    """Return a report on 100 examples; the base gets 50 right."""

    def accuracy(right: int) -> Measured:
        return Measured({"accuracy": right / 100}, [1.0] * right + [0.0] * (100 - right))

    row = {"a": accuracy(expert)}
    return Report(row, Reference({"a": accuracy(50)}, row))


def with_outcomes(directory: Path, report: Report, **changes: Any) -> Path:
    """Write a report with changed content, and its outcomes."""
    write_report(directory, report.as_json() | changes)
    (directory / "outcomes.json").write_text(json.dumps(report.outcomes_as_json()))
    return directory


def test_outcomes_are_read_on_request(tmp_path: Path) -> None:
    directory = with_outcomes(tmp_path / "out", on_examples(60))
    assert not isinstance(read_report(directory).tasks["a"], Measured)
    assert read_report(directory, outcomes=True) == on_examples(60)
    assert isinstance(read_report(directory, outcomes=True).tasks["a"], Measured)


def test_outcomes_tell_whether_an_expert_is_below_the_base(tmp_path: Path) -> None:
    rotated = with_outcomes(tmp_path / "rotated", on_examples(30), experts_below_base={})
    (expert,) = read_report(rotated).experts_below_base
    assert (expert.task, expert.evidence) == ("a", "exact McNemar")
    (rotated / "outcomes.json").write_text("{")
    (expert,) = read_report(rotated).experts_below_base
    assert expert.evidence == "the figures alone"
    chance = with_outcomes(tmp_path / "chance", on_examples(48), within_chance=[])
    assert read_report(chance).experts_below_base == ()


def test_differences_within_chance_stay_so_over_seeds() -> None:
    (averaged,) = average_seeds({"run": on_examples(48)}).values()
    assert averaged.experts_below_base == ()
