"""TensorBoard and Weights & Biases, as far as a run is told to them."""

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
    """Event files in a folder of the run's own, below `place`."""

    def __init__(self, run: RunInfo, place: str) -> None:
        found = import_optional("tensorboardX", "it", "fusion-trackers[tensorboard]")
        self._writer = found.SummaryWriter(_new_folder(Path(place or "runs"), _name_of(run)))
        self._writer.add_text("recipe", f"```yaml\n{dump_yaml(dict(run.recipe))}```")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a point to each metric's curve."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, figures: Mapping[str, float], *, failed: bool) -> None:
        """Add each figure as a point, and close the file."""
        del failed
        self.log(0, figures)
        self._writer.close()


class WeightsAndBiases:
    """A run of the project `place`; without one, of what `WANDB_PROJECT` says."""

    def __init__(self, run: RunInfo, place: str) -> None:
        wandb = import_optional("wandb", "it", "fusion-trackers[wandb]")
        named = {"project": place or None, "name": _name_of(run), "config": dict(run.recipe)}
        apart = {"reinit": "create_new", "settings": wandb.Settings(console="off")}
        self._run = wandb.init(**named, **apart)
        self._run.define_metric("*", step_metric="step")  # a recipe within starts from 0 again

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add what was measured at a step."""
        self._run.log({"step": step, **metrics})

    def finish(self, figures: Mapping[str, float], *, failed: bool) -> None:
        """Add the figures to the summary, and send or write what is left."""
        self._run.summary.update(figures)
        self._run.finish(exit_code=int(failed))


Tracker = TensorBoard | WeightsAndBiases
_KINDS: Mapping[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def open_tracker(asked: str, run: RunInfo) -> Tracker:
    """Open `NAME` or `NAME:PLACE`; raises a `FusionError` for one that is not known or not here."""
    name, _, place = asked.partition(":")
    if name not in _KINDS:
        raise RecipeError(f"there is no tracker {name!r}", hint=f"There are: {', '.join(_KINDS)}.")
    return _KINDS[name](run, place)


def _name_of(run: RunInfo) -> str:
    """Return the output's name, and of a merge in memory the names of its stages."""
    given = run.recipe["algorithm"]
    stages = given if isinstance(given, list) else [given]
    names = (re.split("[/:]", str(stage["name"]))[-1] for stage in stages)
    return run.path.name if run.path else "-".join(names)


def _new_folder(parent: Path, name: str) -> str:
    """Make `name`, or `name-2`, ...: TensorBoard draws what shares a folder as one curve."""
    for each in chain([name], (f"{name}-{number}" for number in count(2))):
        try:
            (parent / each).mkdir(parents=True)
        except FileExistsError:
            continue
        return str(parent / each)
    raise AssertionError
