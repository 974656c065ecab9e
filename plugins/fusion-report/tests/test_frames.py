"""Reports as data frames."""

from __future__ import annotations

import sys

import pytest

from fusion_core import Measured, Reference, Report
from fusion_core.errors import FusionError
from fusion_report import to_dataframe

REPORT = Report(
    {"latin": Measured({"accuracy": 0.5}, [1, 0]), "greek": {"accuracy": 0.6}},
    Reference(experts={"latin": {"accuracy": 0.9}, "greek": {"accuracy": 1.0}}),
)


def test_reports_become_data_frames() -> None:
    pandas = pytest.importorskip("pandas")
    frame = to_dataframe(REPORT)
    assert list(frame.columns) == ["metric", "merged", "experts", "low", "high"]
    assert frame.loc["greek", "merged"] == 0.6
    assert frame.loc["latin", ["low", "high"]].tolist() == pytest.approx([0.0945, 0.9055], abs=1e-4)
    assert pandas.isna(frame.loc["greek", "low"])
    apart = Report({"a": {"x": 1.0}}, Reference({"b": {"x": 1.0}}))
    assert pandas.isna(to_dataframe(apart).loc["a", "base"])
    assert "low" not in to_dataframe(apart).columns


def test_without_pandas_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(FusionError, match=r"needs pandas.*\n.*pip install \"fusion-report\[pandas"):
        to_dataframe(REPORT)
