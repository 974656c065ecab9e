"""What a sweep found, in a notebook: the pictures' points are the trials' figures."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from matplotlib import pyplot as plt

from fusion_core import Report
from fusion_core.errors import FusionError
from fusion_sweep import Found, Trial
from fusion_sweep.objectives import Objective

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _figures() -> Iterator[None]:
    yield
    plt.close("all")


def found(*trials: tuple[dict[str, Any], float | None], error: str | None = None) -> Found:
    """Return a sweep in which these points had these accuracies."""
    made = [
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
    return Found("f" * 32, [Objective("average")], "half", made)


def lines(axes: Any) -> dict[str, list[list[float]]]:
    return {
        container.get_label(): container.lines[0].get_xydata().tolist()
        for container in axes.containers
    }


def test_one_option_is_a_line_with_the_deviation_over_seeds() -> None:
    half, one = {"algorithm": "ties", "s": 0.5}, {"algorithm": "ties", "s": 1}
    average = {"algorithm": "average"}
    (axes,) = found((one, 0.5), (half, 0.2), (half, 0.4), (average, 0.6)).plot().axes
    (line,) = lines(axes).values()
    assert line == [pytest.approx([0.5, 30.0]), pytest.approx([1, 50.0])]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("s", "average (%)")
    (bars,) = axes.containers[0].lines[2]  # type: ignore[attr-defined]
    assert bars.get_segments()[0][:, 1] == pytest.approx([30 - 14.142, 30 + 14.142], abs=1e-3)
    (across,) = (each for each in axes.lines if each.get_label() == "average")
    assert set(across.get_ydata()) == {60.0}  # type: ignore[arg-type]


def test_two_options_in_every_combination_are_a_map_and_others_dots() -> None:
    grid = [({"s": s, "t": t}, s * t) for s in (0.1, 0.5) for t in (0.2, 0.4, 0.6)]
    cells, _ = found(*grid).plot().axes
    (image,) = cells.images
    assert (cells.get_xlabel(), cells.get_ylabel()) == ("s", "t")
    wanted = [[2.0, 10.0], [4.0, 20.0], [6.0, 30.0]]  # a row a t, from below
    for row, values in zip(image.get_array(), wanted, strict=True):  # type: ignore[arg-type]
        assert row.tolist() == pytest.approx(values)
    first, second = found(*grid[:-1]).plot().axes
    assert [axes.get_xlabel() for axes in (first, second)] == ["s", "t"]
    assert len(lines(first)["all"]) == 5


def test_without_numbers_each_point_has_a_row() -> None:
    several = found(({"algorithm": "$a$", "of": True}, 0.5), ({"algorithm": "b"}, 0.7))
    (axes,) = several.plot().axes
    assert [yticklabel.get_text() for yticklabel in axes.get_yticklabels()] == ["b", "$a$ of=True"]


def test_a_sweep_shows_its_table_and_what_failed() -> None:
    shown = found(({"s": 0.5}, 0.25), ({"s": "<b>"}, None), error="<i>")._repr_html_()
    assert "<th>s</th><th>average (%)</th></tr><tr><td>00000000</td><td>0.5</td>" in shown
    assert "failed: ties s=&lt;b&gt;: &lt;i&gt;" in shown
    empty = found(({"s": 0.5}, None), error="it is too large")
    assert "<table>" not in empty._repr_html_()
    with pytest.raises(FusionError, match="no trial of this sweep is finished"):
        empty.plot()


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot")
    with pytest.raises(FusionError, match=r'needs matplotlib.*\n.*pip install "matplotlib"'):
        found(({"s": 0.5}, 0.25), ({"s": 0.7}, 0.5)).plot()
