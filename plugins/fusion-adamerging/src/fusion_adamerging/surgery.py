"""Representation surgery (arXiv:2402.02705): an adapter of a merge's features for each task."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from fusion_adamerging.adaptive import Unlabeled
from fusion_adamerging.config import SurgeryConfig
from fusion_adapting import build_live, generator_of, module_of_features, through_adapter
from fusion_core import Calibration, FeatureTask
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import AdaptiveTask, ModelPool, RunContext, WeightSource

    #: `down` and `up`
    Adapter = tuple[Tensor, Tensor]


class Trained(NamedTuple):
    """An adapter, and the mean distances of features from the expert's before and after it."""

    adapter: Adapter
    distances: tuple[float, float]


class Surgery(Unlabeled[SurgeryConfig], Calibration[SurgeryConfig]):
    """z - up relu(down z) in the place of each task's features z, near to those of its expert.

    The merge stays as it is. A task's adapter, of shapes (rank, width) and (width, rank), minimises
    the mean absolute difference from what the task's expert computes of unlabeled examples, with
    Adam (betas 0.9, 0.999). As in the authors' code there are no biases, `down` begins uniformly
    within 1 / sqrt(width) of zero, and `up` as zeros; theirs sees new examples in every step, this
    one goes through `examples` of each task in shuffled rounds. The model for a task is
    `fusion_core.build_for_task(directory, task)`; without its adapter it is the merge.

    Tasks: those whose heads read features (`FeatureTask`). Either one module of the model returns
    them, or the task passes them through `fusion_core.mark_features` (a mean over tokens, say).

    Data: unlabeled examples. Cost: one pass of them through the merge and one through each task's
    expert; training takes seconds.
    """

    config_class = SurgeryConfig

    def calibrate(
        self, merged: WeightSource, pool: ModelPool[Any], context: RunContext
    ) -> WeightSource:
        """Train the adapters; the merge is returned as it is."""
        tasks = [_with_features(task) for task in self.adapted(pool, context)]
        experts = {task.name: pool.expert_of(task.name) for task in tasks}
        model = build_live(pool, merged, context.device)
        modules = {task.name: self._module(model, task, context) for task in tasks}
        given = {task.name: self._features(model, task, context) for task in tasks}
        del model
        found: dict[str, Trained] = {}
        with context.progress.track("train adapters", total=len(tasks), unit="tasks") as advance:
            for task in tasks:
                expert = build_live(pool, experts[task.name], context.device)
                wanted = self._features(expert, task, context)
                found[task.name] = self._trained(task.name, given[task.name], wanted, context)
                advance(1, note=task.name)
        for step, number in ((0, 0), (self.config.steps, 1)):
            distances = {f"distance/{name}": each.distances[number] for name, each in found.items()}
            context.log(step, distances)
        context.save_task_adapters({name: each.adapter for name, each in found.items()}, modules)
        return merged

    def _module(self, model: nn.Module, task: FeatureTask, context: RunContext) -> str:
        batch = self.batches(context).of(task, 0).to(context.device)
        found = module_of_features(model, task, batch)
        if found is None:
            raise RecipeError(
                f"no module of the model returns the features of task {task.name!r}: there is "
                "nothing to attach an adapter to",
                hint="In the task's class, return fusion_core.mark_features(model, features) from "
                f"`features`; or leave {task.name!r} out of algorithm.tasks.",
            )
        return found

    @torch.no_grad()
    def _features(self, model: nn.Module, task: FeatureTask, context: RunContext) -> Tensor:
        """Return the features of the examples, of shape (examples, ...)."""
        whole = replace(self.batches(context), examples=None)
        batches = whole.first(task, self.config.examples)
        found = [task.features(model, batch.to(context.device).inputs) for batch in batches]
        return torch.cat(found)

    def _trained(self, task: str, given: Tensor, wanted: Tensor, context: RunContext) -> Trained:
        batches = self.batches(context)
        down, up = learned = self._started(task, given, context)
        optimiser = torch.optim.Adam(learned, lr=self.config.lr)
        for step in range(self.config.steps):
            rows = batches.rows(task, step, len(given)).to(given.device)
            optimiser.zero_grad()
            objective = distance(through_adapter(given[rows], down, up), wanted[rows])
            objective.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        adapter = down.detach(), up.detach()
        after = distance(through_adapter(given, *adapter), wanted)
        distances = distance(given, wanted).item(), after.item()
        return Trained((adapter[0].cpu(), adapter[1].cpu()), distances)

    def _started(self, task: str, given: Tensor, context: RunContext) -> Adapter:
        width, draw = given.shape[-1], generator_of(context.seed, f"surgery\0{task}")
        bound = width**-0.5
        down = torch.empty(self.config.rank, width).uniform_(-bound, bound, generator=draw)
        up = given.new_zeros(width, self.config.rank)
        return down.to(given).requires_grad_(), up.requires_grad_()


def distance(features: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean absolute difference: a scalar."""
    return nn.functional.l1_loss(features, wanted)


def _with_features(task: AdaptiveTask) -> FeatureTask:
    if not isinstance(task, FeatureTask):
        raise RecipeError(
            f"task {task.name!r} has no features apart from its head, for an adapter",
            hint="Name tasks whose heads read features: --set algorithm.tasks=...",
        )
    return task
