"""What hooks and callers learn of a run: its recipe and place, and what it made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.layout import table_of
from fusion_core.contracts.metrics import FILE, curves
from fusion_core.contracts.plots import plot

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.figure import Figure
    from torch import nn

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.report import Report
    from fusion_core.weights.source import WeightSource


@dataclass(frozen=True)
class RunInfo:
    """What life-cycle hooks learn about a run."""

    #: the resolved recipe, defaults included
    recipe: Mapping[str, Any]
    #: where the model goes; None for a run that writes nothing
    path: Path | None


@dataclass(frozen=True)
class RunResult:
    """What a run made."""

    pool: ModelPool[Any]
    #: the merged weights: in memory, or those of the directory written
    weights: WeightSource
    #: the directory, None for a run that wrote nothing
    path: Path | None
    #: what the tasks measured, None if there were none
    report: Report | None
    #: what the algorithm saved beside the model, by file name; tensors as they were given
    side_files: Mapping[str, bytes | WeightSource]

    @cached_property
    def model(self) -> nn.Module:
        """The merged model, live: in fp32, or in the dtype of models that were given live."""
        return self.pool.build(self.weights, dtype=None)

    def plot(self) -> Figure:
        """Return a picture of the report, as its own, and below it of what was logged.

        That is the objective of a search, step by step. Raises `FusionError` without matplotlib,
        and where there is neither.
        """
        table = None if self.report is None else table_of({"merged": self.report})
        log = self.side_files.get(FILE)
        return plot(table, curves(log) if isinstance(log, bytes) else {})

    def _repr_html_(self) -> str:
        """Show in a notebook what the tasks measured, and where the model lies."""
        place = "in memory" if self.path is None else f"<code>{escape(str(self.path))}</code>"
        shown = "" if self.report is None else self.report._repr_html_()
        return f"{shown}<p>merged: {place}</p>"
