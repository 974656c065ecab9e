"""Where trials are run: models and tasks are opened once, and nothing is left behind.

A trial is planned by its recipe, as `fuse run` plans it, but on the pools of the trial before;
merged in memory, or in a scratch directory; and measured on what options are chosen on.
"""

from __future__ import annotations

import os
import pickle
import shutil
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4
from weakref import WeakKeyDictionary

import torch

from fusion_core import RunOptions, plan
from fusion_core.commands import RunIdentities, device_of, execute
from fusion_core.errors import FusionError, RecipeError
from fusion_core.weights import Shared
from fusion_sweep.trial import Trial, digest
from fusion_sweep.unlabeled import Unlabeled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core import Report, RunResult, TaskPool
    from fusion_core.commands import Plan

    Tasks = TaskPool[Any]

#: What is measured on: one half of the test examples, the other, all, or those without labels.
On = Literal["half", "other half", "test", "unlabeled"]
#: What a number may depend on in its last digits only: where a trial ran is not part of what it is.
_MACHINE = ("machine", "threads")


@dataclass
class Bench:
    """Runs trials of one sweep; `asked` and `samples` are of what is measured without labels."""

    options: RunOptions = field(default_factory=RunOptions)
    asked: Sequence[str] = ()
    samples: int = 256
    #: where trials are written to be measured, and removed; None: they stay in memory
    scratch: Path | None = None
    #: what trials keep for one another, in a quarter of the memory
    shared: Shared = field(default_factory=lambda: Shared(_memory() // 4))
    _last: Plan | None = None
    _halves: WeakKeyDictionary[Tasks, tuple[Tasks, Tasks]] = field(
        default_factory=WeakKeyDictionary
    )
    _unlabeled: tuple[Tasks, Unlabeled] | None = None
    #: in the place of an identity that cannot be told: only this sweep knows such trials
    session: str = field(default_factory=lambda: uuid4().hex)
    _identities: RunIdentities = field(default_factory=RunIdentities)
    #: this process's own trial in the scratch directory
    _place: str = field(default_factory=lambda: f"trial-{uuid4().hex}")

    def plan(self, recipe: Mapping[str, Any]) -> Plan:
        """Plan a trial; raises as `fusion_core.plan` does, and `RecipeError` without tasks.

        So it does without trust: what the tasks are is asked next, which may start a program.
        """
        output = {**recipe.get("output", {}), "path": None}
        options = replace(self.options, device="cpu")
        if self.scratch is not None:
            output["path"] = str(self.scratch / self._place)
            options = replace(options, overwrite=True)
        planned = plan({**recipe, "output": output}, options, like=self._last)
        planned.check_trust()
        self._last = replace(planned, device=_device(self.options.device))
        if self._last.tasks is None:
            raise RecipeError(
                "a sweep measures its trials, and there are no tasks",
                hint="Name a task pool with --task-pool; see: fuse list tasks",
            )
        return self._last

    def pickled(self) -> bytes:
        """Return what makes such a bench in a worker, which merges there: nothing of it is open."""
        options = replace(self.options, executor=None, workers=None)
        return pickle.dumps((options, self.asked, self.samples, self.scratch, self.session))

    def name(self, planned: Plan, on: On) -> Trial:
        """Return a planned trial, not run yet, under a name that tells it from all others."""
        recipe = planned.recipe_in(Path("/"))
        measured: dict[str, Any] = {"on": on}
        if on == "unlabeled":
            _check_model(planned)
            measured |= {"asked": list(self.asked), "samples": self.samples}
        known = self.identify(planned, on) or {"session": self.session}
        return Trial(digest({**known, "recipe": recipe, "measured": measured}), recipe, measured)

    def identify(self, planned: Plan, on: On) -> dict[str, Any] | None:
        """Return all that a trial's figures depend on; None if that cannot be told."""
        own = [Unlabeled] if on == "unlabeled" else []
        known = self._identities.of(replace(planned, tasks=self.tasks(planned, on)), *own)
        return known and {key: value for key, value in known.items() if key not in _MACHINE}

    def run(self, planned: Plan, trial: Trial) -> Trial:
        """Return a trial with what was measured of it, or why it failed."""
        started, cpu = time.perf_counter(), time.process_time()
        report, error = None, None
        try:
            report = self._measured(planned, trial.measured["on"])
        except FusionError as failed:
            error = failed.message
        except (ArithmeticError, RuntimeError, ValueError) as failed:  # of numbers that explode
            error = f"{type(failed).__name__}: {failed}"
        return replace(
            trial,
            report=report,
            error=error,
            seconds=round(time.perf_counter() - started, 3),
            cpu=round(time.process_time() - cpu, 3),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def tasks(self, planned: Plan, on: On) -> Tasks:
        """Return what a trial is measured on; raises `RecipeError` for tasks without halves."""
        tasks = planned.tasks
        assert tasks is not None  # noqa: S101 - `plan` looked
        if on in {"test", "unlabeled"}:
            return tasks
        if tasks not in self._halves:
            self._halves[tasks] = tasks.halves()
        return self._halves[tasks][on == "other half"]

    def _measured(self, planned: Plan, on: On) -> Report:
        options = replace(planned.options, evaluate=on != "unlabeled")
        own = replace(planned, tasks=self.tasks(planned, on), options=options)
        try:
            with self.shared:
                result = execute(own)
            return result.report or self._without_labels(own, result)
        finally:
            if own.path is not None:
                shutil.rmtree(own.path, ignore_errors=True)

    def _without_labels(self, planned: Plan, result: RunResult) -> Report:
        tasks = planned.tasks
        assert tasks is not None  # noqa: S101 - `plan` looked
        if self._unlabeled is None or self._unlabeled[0] is not tasks:
            made = Unlabeled(result.pool, tasks, planned.device, self.samples, self.asked)
            self._unlabeled = (tasks, made)
        return self._unlabeled[1].report(result.weights)


def bench_of(pickled: bytes) -> Bench:
    """Return a bench of `Bench.pickled`, for one of as many workers as this machine has cores."""
    options, asked, samples, scratch, session = pickle.loads(pickled)  # noqa: S301 - our own
    own = _memory() // 4 // (os.cpu_count() or 1)
    return Bench(options, asked, samples, scratch, shared=Shared(own), session=session)


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _device(name: str) -> torch.device:
    """Return a device that workers may have although this process has not."""
    try:
        return device_of(name)
    except RecipeError:
        if not name.startswith("cuda"):
            raise
        return torch.device(name)


def _check_model(planned: Plan) -> None:
    """Raise `RecipeError` for a method that makes another model for each task."""
    for stage in planned.stages:
        if stage.resolved is not None and stage.resolved.component.spec.needs_task:
            raise RecipeError(
                f"{stage.name} makes another model for every task: it is chosen by labels only",
                hint="Choose by --objective average.",
            )
