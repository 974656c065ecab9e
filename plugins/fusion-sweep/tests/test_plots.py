"""Results of sweeps in a notebook: the pictures show the trials' scores."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from matplotlib import pyplot as plt

from fusion_core import Report
from fusion_core.errors import FusionError
from fusion_sweep import SweepResult, Trial
from fusion_sweep.objectives import Objective

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _figures() -> Iterator[None]:
    yield
    plt.close("all")


def make_result(
    *trials: tuple[dict[str, Any], float | None], error: str | None = None
) -> SweepResult:
    """Return the result of a sweep in which these points had these accuracies."""
    swept = [
        Trial(
            f"{number:032x}",
            {"algorithm": {"name": point.get("algorithm", "ties")}},
            {},
            None if value is None else Report({"a": {"accuracy": value}}),
            error,
            point=point,
            seed=number,
        )
        for number, (point, value) in enumerate(trials)
    ]
    return SweepResult("f" * 32, [Objective("average")], "half", swept)


def lines(axes: Any) -> dict[str, list[list[float]]]:
    return {
        container.get_label(): container.lines[0].get_xydata().tolist()
        for container in axes.containers
    }


def test_one_option_is_a_line_with_the_deviation_over_seeds() -> None:
    half, one = {"algorithm": "ties", "s": 0.5}, {"algorithm": "ties", "s": 1}
    average = {"algorithm": "average"}
    (axes,) = make_result((one, 0.5), (half, 0.2), (half, 0.4), (average, 0.6)).plot().axes
    (line,) = lines(axes).values()
    assert line == [pytest.approx([0.5, 30.0]), pytest.approx([1, 50.0])]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("s", "average (%)")
    (bars,) = axes.containers[0].lines[2]  # type: ignore[attr-defined]
    assert bars.get_segments()[0][:, 1] == pytest.approx([30 - 14.142, 30 + 14.142], abs=1e-3)
    (horizontal,) = (line for line in axes.lines if line.get_label() == "average")
    assert set(horizontal.get_ydata()) == {60.0}  # type: ignore[arg-type]


def test_two_options_in_every_combination_are_a_map_and_others_dots() -> None:
    grid = [({"s": s, "t": t}, s * t) for s in (0.1, 0.5) for t in (0.2, 0.4, 0.6)]
    cells, _ = make_result(*grid).plot().axes
    (image,) = cells.images
    assert (cells.get_xlabel(), cells.get_ylabel()) == ("s", "t")
    expected = [[2.0, 10.0], [4.0, 20.0], [6.0, 30.0]]  # one row per t, from the bottom
    for row, values in zip(image.get_array(), expected, strict=True):  # type: ignore[arg-type]
        assert row.tolist() == pytest.approx(values)
    first, second = make_result(*grid[:-1]).plot().axes
    assert [axes.get_xlabel() for axes in (first, second)] == ["s", "t"]
    assert len(lines(first)["all"]) == 5


def test_points_without_numeric_options_have_one_row_each() -> None:
    result = make_result(({"algorithm": "$a$", "of": True}, 0.5), ({"algorithm": "b"}, 0.7))
    (axes,) = result.plot().axes
    assert [yticklabel.get_text() for yticklabel in axes.get_yticklabels()] == ["b", "$a$ of=True"]


def test_html_shows_the_table_and_the_failures() -> None:
    html = make_result(({"s": 0.5}, 0.25), ({"s": "<b>"}, None), error="<i>")._repr_html_()
    assert "<th>s</th><th>average (%)</th></tr><tr><td>00000000</td><td>0.5</td>" in html
    assert "failed: ties s=&lt;b&gt;, seed 1: &lt;i&gt;" in html
    failed = make_result(({"s": 0.5}, None), error="it is too large")
    assert "<table>" not in failed._repr_html_()
    with pytest.raises(FusionError, match="no trial of this sweep is finished"):
        failed.plot()


def test_a_missing_matplotlib_is_an_error_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot")
    with pytest.raises(FusionError, match=r'needs matplotlib.*\n.*pip install "matplotlib"'):
        make_result(({"s": 0.5}, 0.25), ({"s": 0.7}, 0.5)).plot()
