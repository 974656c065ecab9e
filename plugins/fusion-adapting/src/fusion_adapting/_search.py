"""The search loop: repeated passes of unlabeled examples and steps of Adam.

The state is saved every few steps. A resumed search ends with the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from fusion_adapting._monitor import SearchMonitor, TaskSummary
from fusion_adapting._ranks import Ranks
from fusion_core import show_notes_on
from fusion_core.machine.memory import retain_freed_memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from fusion_adapting._config import SearchConfig
    from fusion_adapting._learnable import Learnable
    from fusion_adapting._passes import Objective, Passes
    from fusion_adapting._state import StateStore
    from fusion_core import RunContext

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Search:
    """Minimises the sum of all tasks' objectives with Adam (betas 0.9, 0.999)."""

    config: SearchConfig
    learned: Learnable
    passes: Passes
    #: the names of the tasks of all ranks, in order
    tasks: Sequence[str]
    store: StateStore
    context: RunContext
    ranks: Ranks = field(default_factory=Ranks)

    def __post_init__(self) -> None:
        self.tensors = dict(self.learned.tensors)
        factors = self.learned.rate_factors
        self.optimiser = torch.optim.Adam(
            {"params": [tensor], "factor": factors.get(name, 1)}
            for name, tensor in self.tensors.items()
        )
        self.monitor = SearchMonitor()
        #: the last step without a sign of divergence or collapse, and its tensors
        self.good = (0, self._copy_tensors())

    def run(self, objective: Objective) -> None:
        """Minimise an objective in all remaining steps.

        Raises `SearchStoppedError` if the search diverges or collapses; `good` then holds the
        tensors that are worth saving.
        """
        steps = range(self._resume(), self.config.steps)
        track = self.context.progress.track("adapt", total=self.config.steps, unit="steps")
        with track as advance, show_notes_on(advance), retain_freed_memory():
            advance(steps.start)
            for step in steps:
                note = self._take_step(step, objective)
                advance(1, note=note)
                if (step + 1) % self.config.save_every == 0 or step + 1 == steps.stop:
                    self._save(step + 1)
        self.learned.check(self.config.steps)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step (0-based)."""
        if self.config.schedule == "constant":
            return self.config.lr
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * step / self.config.steps))

    def _take_step(self, step: int, objective: Objective) -> str:
        """Take one step; return a note for the progress bar."""
        self.learned.check(step)
        self.learned.write_weights()
        outcomes = self.passes.backward(step, objective)
        summaries = self._gather(
            {task: TaskSummary.of(outcome) for task, outcome in outcomes.items()}
        )
        self.learned.collect(self.ranks.sum)
        if self.monitor.check(step, summaries, taught=self.config.objective == "teacher"):
            self.good = (step, self._copy_tensors())
        for group in self.optimiser.param_groups:
            group["lr"] = group["factor"] * self.learning_rate(step)
        self.optimiser.step()
        self.learned.settle()
        self._log(step, summaries)
        return " ".join(f"{name} {summary.objective:.2f}" for name, summary in summaries.items())

    def _copy_tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def _gather(self, summaries: Mapping[str, TaskSummary]) -> dict[str, TaskSummary]:
        """Return the summaries of all ranks, in the order of tasks."""
        gathered = {
            name: summary for part in self.ranks.gather(summaries) for name, summary in part.items()
        }
        return {name: gathered[name] for name in self.tasks}

    def _log(self, step: int, summaries: Mapping[str, TaskSummary]) -> None:
        kind = self.config.objective
        self.context.log(
            step,
            {
                kind: sum(summary.objective for summary in summaries.values()),
                **{f"{kind}/{name}": summary.objective for name, summary in summaries.items()},
                **self.learned.shown(),
            },
        )

    def _save(self, step: int) -> None:
        moments = {
            name: {key: self.optimiser.state[tensor][key] for key in _MOMENTS}
            for name, tensor in self.tensors.items()
        }
        state = {"learned": self.tensors, "moments": moments, "good": self.good}
        self.store.save(step, {**state, "watch": self.monitor.state()})

    def _resume(self) -> int:
        """Restore the last state of the first rank, if there is one; return the next step."""
        state = self.ranks.broadcast(self.store.recall())
        if state is None:
            return 0
        for name, tensor in self.tensors.items():
            tensor.data.copy_(state["learned"][name])
            moments = {k: v.to(tensor.device) for k, v in state["moments"][name].items()}
            self.optimiser.state[tensor] = {"step": torch.tensor(float(state["step"])), **moments}
        step, good = state["good"]
        self.good = (step, {k: v.to(self.tensors[k].device) for k, v in good.items()})
        self.monitor = SearchMonitor.from_state(state["watch"])
        return int(state["step"])
