"""The search for coefficients: a pass, a projection and a step of Adam, again and again.

Where it stands is saved every few steps; a search that goes on from there ends with the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from fusion_adamerging.watch import Seen, Watch, check_size
from fusion_core import noting
from fusion_core.adapting import Ranks, keeping_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from fusion_adamerging.config import AdaMergingConfig
    from fusion_core import RunContext
    from fusion_core.adapting import LiveMerge, Objective, Passes, StateStore

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Search:
    """Learns the coefficients of a live merge, shape (experts, columns of it) or (experts, 1)."""

    config: AdaMergingConfig
    live: LiveMerge
    passes: Passes
    #: the names of experts and of tasks, in order; of the tasks of all ranks
    experts: Sequence[str]
    tasks: Sequence[str]
    store: StateStore
    context: RunContext
    ranks: Ranks = field(default_factory=Ranks)

    def __post_init__(self) -> None:
        columns = 1 if self.config.granularity == "task" else self.live.columns
        shape = (len(self.experts), columns)
        start = torch.full(shape, self.config.init, dtype=self.live.dtype)
        self.learned = start.to(self.passes.device)
        self.optimiser = torch.optim.Adam([self.learned], lr=self.config.lr)
        self.watch = Watch()
        #: the last coefficients that nothing was wrong with, and the step that they were seen in
        self.good = (0, self.learned.clone())

    def run(self, objective_of: Callable[[range], Objective]) -> Tensor:
        """Take all steps that are left; returns the coefficients of all leaves.

        `objective_of` is called with these steps and returns what is minimised in them. Raises
        `SearchStoppedError` where going on would lead astray; `good` then holds what is worth
        rescuing.
        """
        if not self.live.leaves:  # every expert is the base
            return self.every(self.learned)
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
        check_size(self.config.steps, self.learned)
        return self.every(self.learned)

    def every(self, coefficients: Tensor) -> Tensor:
        """Spread coefficients over all leaves: shape (experts, columns of the live merge)."""
        return coefficients.expand(-1, self.live.columns)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step (0-based)."""
        if self.config.schedule == "constant":
            return self.config.lr
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * step / self.config.steps))

    def _step(self, step: int, objective: Objective) -> str:
        check_size(step, self.learned)
        self.live.merge(self.every(self.learned))
        shown = self.passes.backward(step, objective)
        seen = self._gathered({task: Seen.of(outcome) for task, outcome in shown.items()})
        gradient = self.ranks.summed(self.live.gradient())
        if self.watch.look(step, seen):
            self.good = (step, self.learned.clone())
        task_wise = self.config.granularity == "task"
        self.learned.grad = gradient.sum(1, keepdim=True) if task_wise else gradient
        self.optimiser.param_groups[0]["lr"] = self.learning_rate(step)
        self.optimiser.step()
        if self.config.clamp:
            self.learned.clamp_(0, 1)
        return self._report(step, seen)

    def _gathered(self, own: Mapping[str, Seen]) -> dict[str, Seen]:
        """Return what all ranks have seen, in the order of tasks."""
        found = {name: seen for part in self.ranks.gathered(own) for name, seen in part.items()}
        return {name: found[name] for name in self.tasks}

    def _report(self, step: int, seen: Mapping[str, Seen]) -> str:
        what = self.config.objective
        means = self.learned.mean(dim=1).tolist()
        self.context.log(
            step,
            {
                what: sum(each.objective for each in seen.values()),
                **{f"{what}/{name}": each.objective for name, each in seen.items()},
                **{f"coefficient/{k}": v for k, v in zip(self.experts, means, strict=True)},
            },
        )
        return " ".join(f"{name} {each.objective:.2f}" for name, each in seen.items())

    def _save(self, step: int) -> None:
        moments = self.optimiser.state[self.learned]
        self.store.save(
            step,
            {
                "coefficients": self.learned,
                **{name: moments[name] for name in _MOMENTS},
                "good": self.good,
                "watch": self.watch.state(),
            },
        )

    def _resumed(self) -> int:
        """Go on where the first rank's last state stands; returns the step to take next."""
        state = self.ranks.from_first(self.store.recall())
        if state is None:
            return 0
        device = self.learned.device
        self.learned.copy_(state["coefficients"])
        moments = {name: state[name].to(device) for name in _MOMENTS}
        self.optimiser.state[self.learned] = {"step": torch.tensor(float(state["step"])), **moments}
        self.good = (state["good"][0], state["good"][1].to(device))
        self.watch = Watch.recall(state["watch"])
        return int(state["step"])
