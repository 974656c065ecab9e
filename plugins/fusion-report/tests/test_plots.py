"""Plots show what was measured and logged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from matplotlib import pyplot as plt

from fusion_core import Measured, Metric, Reference, Report, RunResult
from fusion_core.errors import FusionError
from fusion_report import plot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

LOG = b'{"step": 0, "loss": 2.0, "loss/a": 1.0}\n{"step": 3, "loss": NaN}\n'


@pytest.fixture(autouse=True)
def _figures() -> Iterator[None]:
    yield
    plt.close("all")


def result(report: Report | None, **side_files: bytes) -> RunResult:
    missing: Any = None
    files = {f"{name}.jsonl": content for name, content in side_files.items()}
    return RunResult(missing, missing, None, report, files)


def points_by_label(axes: Axes) -> dict[str, list[list[float]]]:
    """Return each label's points."""
    return {
        str(container.get_label()): container.lines[0].get_xydata().tolist()  # type: ignore[attr-defined]
        for container in axes.containers
    }


def test_tasks_are_drawn_in_one_panel_per_metric() -> None:
    bits = Metric("bits", unit="", higher_is_better=False)
    report = Report(
        {"$a_1$": Measured({"accuracy": 0.5}, [1, 0]), "text": {"bits": 1.5}},
        Reference(base={"text": {"bits": 2.0}}, experts={"$a_1$": {"accuracy": 0.75}}),
        metrics={"text": {"bits": bits}},
    )
    accuracy, text = plot(report).axes
    assert points_by_label(accuracy)["merged"] == [[50.0, 0.0]]
    assert points_by_label(accuracy)["experts"] == [[75.0, 0.0]]
    assert [yticklabel.get_text() for yticklabel in accuracy.get_yticklabels()] == ["$a_1$"]
    assert text.get_xlabel() == "bits, lower is better"
    assert points_by_label(text)["base"] == [[2.0, 0.0]]
    (bars,) = accuracy.containers[1].lines[2]  # type: ignore[attr-defined]
    ((low, _), (high, _)) = bars.get_segments()[0]
    assert (low, high) == pytest.approx((9.45, 90.55), abs=0.01)  # Wilson's, of one in two


def test_values_logged_over_all_tasks_get_panels() -> None:
    figure = plot(result(Report({"a": {"accuracy": 0.5}}), metrics=LOG))
    _, curve = figure.axes
    assert curve.get_ylabel() == "loss"
    assert curve.lines[0].get_xdata()[:].tolist() == [0, 3]  # type: ignore[union-attr]
    assert len(plot(result(None, metrics=LOG)).axes) == 1


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(FusionError, match="nothing to plot"):
        plot(result(None))
