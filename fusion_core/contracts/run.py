"""The descriptions of a run for hooks and callers: `RunInfo` and `RunResult`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any, NoReturn

from fusion_core._moved import moved_name_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import nn

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.report import Report
    from fusion_core.weights.source import WeightSource


@dataclass(frozen=True)
class RunInfo:
    """The recipe, the output path and the models' cards of a run, for hooks."""

    #: the resolved recipe, defaults included
    recipe: Mapping[str, Any]
    #: the output directory; None if the run writes nothing
    path: Path | None
    #: the facts of the models' cards, as `ModelPool.cards` returns them; a model of a nested recipe
    #: is named `nested/model`, and a model without a card has no facts
    cards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunResult:
    """The result of a run: weights, report and side files."""

    pool: ModelPool[Any]
    #: the merged weights, in memory or in the output directory
    weights: WeightSource
    #: the output directory; None if the run wrote nothing
    path: Path | None
    #: the tasks' measurements; None if nothing was measured
    report: Report | None
    #: the files that the algorithm saved, by name; sources as the algorithm passed them
    side_files: Mapping[str, bytes | WeightSource]
    #: lines about what the form of the output lost, such as an adapter's error
    summary: tuple[str, ...] = ()
    #: the number of tensors that each compiled kernel serves, by its name
    kernels: Mapping[str, int] = field(default_factory=dict)
    #: adds the modules to a live model that its weights leave out; None without any
    add_modules: Callable[[nn.Module], object] | None = None

    @cached_property
    def model(self) -> nn.Module:
        """The merged model, live: in fp32, or in the dtype of models that were given live."""
        model = self.pool.build(self.weights, dtype=None)
        if self.add_modules is not None:
            self.add_modules(model)
        return model

    def plot(self) -> NoReturn:
        """Raise an `ImportError` that names the replacement, `fusion_report.plot`."""
        raise moved_name_error("RunResult.plot")

    def _repr_html_(self) -> str:
        """Return the report and the output's path as HTML, for notebooks."""
        location = "in memory" if self.path is None else f"<code>{escape(str(self.path))}</code>"
        report = "" if self.report is None else self.report._repr_html_()
        return f"{report}<p>merged: {location}</p>"
