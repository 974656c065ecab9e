"""Trackers for TensorBoard and Weights & Biases."""

from __future__ import annotations

import re
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core.commands import dump_yaml, import_optional
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core import RunInfo


class TensorBoard:
    """Event files in a new folder below `parent`, by default `runs`."""

    def __init__(self, run: RunInfo, parent: str) -> None:
        tensorboardx = import_optional("tensorboardX", "it", "fusion-trackers[tensorboard]")
        folder = _make_folder(Path(parent or "runs"), _run_name(run))
        self._writer = tensorboardx.SummaryWriter(folder)
        self._writer.add_text("recipe", f"```yaml\n{dump_yaml(dict(run.recipe))}```")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a point to each metric's curve."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, scores: Mapping[str, float], *, failed: bool) -> None:
        """Add each score as a point, and close the file."""
        del failed
        self.log(0, scores)
        self._writer.close()


class WeightsAndBiases:
    """A run of `project`, or without one of the project in `WANDB_PROJECT`."""

    def __init__(self, run: RunInfo, project: str) -> None:
        wandb = import_optional("wandb", "it", "fusion-trackers[wandb]")
        self._run = wandb.init(
            project=project or None,
            name=_run_name(run),
            config=dict(run.recipe),
            reinit="create_new",
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("*", step_metric="step")  # a nested recipe starts again at 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step."""
        self._run.log({"step": step, **metrics})

    def finish(self, scores: Mapping[str, float], *, failed: bool) -> None:
        """Add the scores to the summary, and send or write all remaining data."""
        self._run.summary.update(scores)
        self._run.finish(exit_code=int(failed))


Tracker = TensorBoard | WeightsAndBiases
_KINDS: Mapping[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def open_tracker(spec: str, run: RunInfo) -> Tracker:
    """Open `NAME` or `NAME:TARGET`; raises `FusionError` for an unknown or missing tracker."""
    name, _, target = spec.partition(":")
    if name not in _KINDS:
        raise RecipeError(f"unknown tracker {name!r}", hint=f"Trackers: {', '.join(_KINDS)}.")
    return _KINDS[name](run, target)


def _run_name(run: RunInfo) -> str:
    """Return the name of the output, or for a merge in memory those of its stages."""
    section = run.recipe["algorithm"]
    stages = section if isinstance(section, list) else [section]
    names = (re.split("[/:]", str(stage["name"]))[-1] for stage in stages)
    return run.path.name if run.path else "-".join(names)


def _make_folder(parent: Path, name: str) -> str:
    """Make the folder `name`, or `name-2`, ...: TensorBoard joins the curves of one folder."""
    for candidate in chain([name], (f"{name}-{number}" for number in count(2))):
        try:
            (parent / candidate).mkdir(parents=True)
        except FileExistsError:
            continue
        return str(parent / candidate)
    raise AssertionError
