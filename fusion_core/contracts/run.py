"""What hooks and callers learn of a run: its recipe and place, and what it made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any, NoReturn

from fusion_core._moved import moved_name_error

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

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

    def plot(self) -> NoReturn:
        """Raise an `ImportError` that names `fusion_report.plot`, which draws results."""
        raise moved_name_error("RunResult.plot")

    def _repr_html_(self) -> str:
        """Show in a notebook what the tasks measured, and where the model lies."""
        place = "in memory" if self.path is None else f"<code>{escape(str(self.path))}</code>"
        shown = "" if self.report is None else self.report._repr_html_()
        return f"{shown}<p>merged: {place}</p>"
