"""A search without labels: a pass and a step of Adam, again and again.

Where it stands is saved every few steps; a search that goes on from there ends with the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from fusion_adamerging.watch import Seen, Watch
from fusion_adapting import Ranks, keeping_freed_memory
from fusion_core import noting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from fusion_adamerging.config import SearchConfig
    from fusion_adamerging.learned import Learned
    from fusion_adapting import Objective, Passes, StateStore
    from fusion_core import RunContext

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Search:
    """Learns what lowers the sum of all tasks' objectives, with Adam (betas 0.9, 0.999)."""

    config: SearchConfig
    learned: Learned
    passes: Passes
    #: the names of the tasks of all ranks, in order
    tasks: Sequence[str]
    store: StateStore
    context: RunContext
    ranks: Ranks = field(default_factory=Ranks)

    def __post_init__(self) -> None:
        self.tensors = dict(self.learned.tensors)
        paces = self.learned.paces
        self.optimiser = torch.optim.Adam(
            {"params": [each], "pace": paces.get(name, 1)} for name, each in self.tensors.items()
        )
        self.watch = Watch()
        #: the last tensors that nothing was wrong with, and the step that they were seen in
        self.good = (0, self._copied())

    def run(self, objective_of: Callable[[range], Objective]) -> None:
        """Take all steps that are left.

        `objective_of` is called with these steps and returns what is minimised in them. Raises
        `SearchStoppedError` where going on would lead astray; `good` then holds what is worth
        rescuing.
        """
        steps = range(self._resumed(), self.config.steps)
        objective = objective_of(steps)
        track = self.context.progress.track("adapt", total=self.config.steps, unit="steps")
        with track as advance, noting(advance), keeping_freed_memory():
            advance(steps.start)
            for step in steps:
                note = self._step(step, objective)
                advance(1, note=note)
                if (step + 1) % self.config.save_every == 0 or step + 1 == steps.stop:
                    self._save(step + 1)
        self.learned.check(self.config.steps)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step (0-based)."""
        if self.config.schedule == "constant":
            return self.config.lr
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * step / self.config.steps))

    def _step(self, step: int, objective: Objective) -> str:
        self.learned.check(step)
        self.learned.place()
        shown = self.passes.backward(step, objective)
        seen = self._gathered({task: Seen.of(outcome) for task, outcome in shown.items()})
        self.learned.collect(self.ranks.summed)
        if self.watch.look(step, seen, taught=self.config.objective == "teacher"):
            self.good = (step, self._copied())
        for group in self.optimiser.param_groups:
            group["lr"] = group["pace"] * self.learning_rate(step)
        self.optimiser.step()
        self.learned.settle()
        return self._report(step, seen)

    def _copied(self) -> dict[str, Tensor]:
        return {name: each.detach().clone() for name, each in self.tensors.items()}

    def _gathered(self, own: Mapping[str, Seen]) -> dict[str, Seen]:
        """Return what all ranks have seen, in the order of tasks."""
        found = {name: seen for part in self.ranks.gathered(own) for name, seen in part.items()}
        return {name: found[name] for name in self.tasks}

    def _report(self, step: int, seen: Mapping[str, Seen]) -> str:
        what = self.config.objective
        self.context.log(
            step,
            {
                what: sum(each.objective for each in seen.values()),
                **{f"{what}/{name}": each.objective for name, each in seen.items()},
                **self.learned.shown(),
            },
        )
        return " ".join(f"{name} {each.objective:.2f}" for name, each in seen.items())

    def _save(self, step: int) -> None:
        moments = {
            name: {key: self.optimiser.state[each][key] for key in _MOMENTS}
            for name, each in self.tensors.items()
        }
        state = {"learned": self.tensors, "moments": moments, "good": self.good}
        self.store.save(step, {**state, "watch": self.watch.state()})

    def _resumed(self) -> int:
        """Go on where the first rank's last state stands; returns the step to take next."""
        state = self.ranks.from_first(self.store.recall())
        if state is None:
            return 0
        for name, each in self.tensors.items():
            each.data.copy_(state["learned"][name])
            moments = {k: v.to(each.device) for k, v in state["moments"][name].items()}
            self.optimiser.state[each] = {"step": torch.tensor(float(state["step"])), **moments}
        step, good = state["good"]
        self.good = (step, {k: v.to(self.tensors[k].device) for k, v in good.items()})
        self.watch = Watch.recall(state["watch"])
        return int(state["step"])
