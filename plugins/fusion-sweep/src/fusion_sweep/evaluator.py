"""Planning, running and measuring of trials on models and tasks that are opened once.

A trial is planned like a run of `fuse run`, but on the pools of the previous trial. It is merged in
memory or in a scratch directory, and measured on the examples that options are chosen on. No files
remain.
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
from fusion_core.commands import RunIdentities, execute, resolve_device
from fusion_core.errors import FusionError, RecipeError
from fusion_core.weights import ResultCache
from fusion_sweep.trial import Trial, digest
from fusion_sweep.unlabeled import UnlabeledMetrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core import ModelPool, Report, RunResult, TaskPool
    from fusion_core.commands import Plan

    Tasks = TaskPool[Any]

#: The examples to measure on: one half of the test examples, the other, all, or unlabeled ones.
Examples = Literal["half", "other half", "test", "unlabeled"]
#: Facts that affect only the last digits of a result. They are not part of a trial's identity.
_MACHINE = ("machine", "threads")


@dataclass
class TrialEvaluator:
    """Runs the trials of one sweep."""

    options: RunOptions = field(default_factory=RunOptions)
    #: metrics to measure without labels
    unlabeled_metrics: Sequence[str] = ()
    #: examples per task to measure without labels
    samples: int = 256
    #: directory to write trials to until they are measured; None: merge in memory
    scratch: Path | None = None
    #: values that trials share, in at most a quarter of the memory
    shared: ResultCache = field(default_factory=lambda: ResultCache(_total_memory() // 4))
    _last_plan: Plan | None = None
    _halves: WeakKeyDictionary[Tasks, tuple[Tasks, Tasks]] = field(
        default_factory=WeakKeyDictionary
    )
    _unlabeled: tuple[Tasks, ModelPool[Any], UnlabeledMetrics] | None = None
    #: stands in for an unknown identity, so that only this sweep recognises such trials
    session: str = field(default_factory=lambda: uuid4().hex)
    _identities: RunIdentities = field(default_factory=RunIdentities)
    #: the name of this process's trial in the scratch directory
    _scratch_name: str = field(default_factory=lambda: f"trial-{uuid4().hex}")

    def plan(self, recipe: Mapping[str, Any]) -> Plan:
        """Plan a trial; raises as `fusion_core.plan` does, and `RecipeError` without tasks.

        Raises `RecipeError` without trust too, since opening the tasks may start a program.
        """
        output = {**recipe.get("output", {}), "path": None}
        options = replace(self.options, device="cpu")
        if self.scratch is not None:
            output["path"] = str(self.scratch / self._scratch_name)
            options = replace(options, overwrite=True)
        planned = plan({**recipe, "output": output}, options, like=self._last_plan)
        planned.check_trust()
        self._last_plan = replace(planned, device=_device(self.options.device))
        if self._last_plan.tasks is None:
            raise RecipeError(
                "a sweep needs tasks to measure its trials",
                hint="Name a task pool with --task-pool; see: fuse list tasks",
            )
        return self._last_plan

    def to_bytes(self) -> bytes:
        """Return a pickle of the bench for a worker, without executor and open pools."""
        options = replace(self.options, executor=None, workers=None)
        return pickle.dumps(
            (options, self.unlabeled_metrics, self.samples, self.scratch, self.session)
        )

    @classmethod
    def from_bytes(cls, pickled: bytes) -> TrialEvaluator:
        """Return a bench for a worker, if each core of this machine has one."""
        options, metrics, samples, scratch, session = pickle.loads(pickled)  # noqa: S301 - ours
        memory = _total_memory() // 4 // (os.cpu_count() or 1)
        return cls(options, metrics, samples, scratch, shared=ResultCache(memory), session=session)

    def name(self, planned: Plan, on: Examples) -> Trial:
        """Return the planned trial, with an id that depends on everything its report does."""
        recipe = planned.recipe_in(Path("/"))
        measured: dict[str, Any] = {"on": on}
        if on == "unlabeled":
            _check_single_model(planned)
            measured |= {"asked": list(self.unlabeled_metrics), "samples": self.samples}
        identity = self.identify(planned, on) or {"session": self.session}
        trial_id = digest({**identity, "recipe": recipe, "measured": measured})
        return Trial(trial_id, recipe, measured)

    def identify(self, planned: Plan, on: Examples) -> dict[str, Any] | None:
        """Return the facts that a trial's report depends on; None if some are unknown."""
        measuring = [UnlabeledMetrics] if on == "unlabeled" else []
        facts = self._identities.of(replace(planned, tasks=self.tasks(planned, on)), *measuring)
        return facts and {key: value for key, value in facts.items() if key not in _MACHINE}

    def run(self, planned: Plan, trial: Trial) -> Trial:
        """Return the trial with its report, or with the reason of its failure."""
        started, cpu = time.perf_counter(), time.process_time()
        report, error = None, None
        try:
            report = self._measure(planned, trial.measured["on"])
        except FusionError as failure:
            error = failure.message
        except Exception as failure:  # noqa: BLE001 - one bug must not cost the other trials
            error = f"{type(failure).__name__}: {failure}"
        return replace(
            trial,
            report=report,
            error=error,
            seconds=round(time.perf_counter() - started, 3),
            cpu=round(time.process_time() - cpu, 3),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def tasks(self, planned: Plan, on: Examples) -> Tasks:
        """Return the tasks to measure a trial on; raises `RecipeError` for tasks without halves."""
        tasks = planned.tasks
        assert tasks is not None  # noqa: S101 - checked by `plan`
        if on in {"test", "unlabeled"}:
            return tasks
        if tasks not in self._halves:
            self._halves[tasks] = tasks.halves()
        return self._halves[tasks][on == "other half"]

    def _measure(self, planned: Plan, on: Examples) -> Report:
        options = replace(planned.options, evaluate=on != "unlabeled")
        planned = replace(planned, tasks=self.tasks(planned, on), options=options)
        try:
            with self.shared:
                result = execute(planned)
            return result.report or self._measure_unlabeled(planned, result)
        except KeyboardInterrupt as interrupt:
            interrupt.__notes__ = []  # they name the directory that is removed below
            raise
        finally:
            if planned.path is not None:
                shutil.rmtree(planned.path, ignore_errors=True)

    def _measure_unlabeled(self, planned: Plan, result: RunResult) -> Report:
        tasks = planned.tasks
        assert tasks is not None  # noqa: S101 - checked by `plan`
        measured = self._unlabeled
        if measured is None or measured[0] is not tasks or measured[1] is not planned.pool:
            metrics = UnlabeledMetrics(
                result.pool, tasks, planned.device, self.samples, self.unlabeled_metrics
            )
            measured = self._unlabeled = (tasks, planned.pool, metrics)
        return measured[2].report(result.weights)


def _total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _device(name: str) -> torch.device:
    """Return a device; workers may have a CUDA device that this process lacks."""
    try:
        return resolve_device(name)
    except RecipeError:
        if not name.startswith("cuda"):
            raise
        return torch.device(name)


def _check_single_model(planned: Plan) -> None:
    """Raise `RecipeError` for a method whose result is more than one model's weights."""
    for stage in planned.stages:
        needs_task = stage.resolved is not None and stage.resolved.component.spec.needs_task
        if needs_task or stage.modules_file is not None:
            makes = "makes one model per task" if needs_task else "adds modules to live models"
            raise RecipeError(
                f"{stage.name} {makes}, which can be measured only with labels",
                hint="Choose by --objective average.",
            )
