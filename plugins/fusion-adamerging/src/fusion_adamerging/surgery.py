"""Representation surgery (arXiv:2402.02705): one adapter of the merge's features per task."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import l1_loss

from fusion_adamerging.config import SurgeryConfig
from fusion_adapting import (
    UnlabeledMixin,
    apply_adapter,
    build_live,
    find_feature_module,
    make_generator,
    refuse_nonfinite,
)
from fusion_core import Calibration, FeatureTask
from fusion_core.errors import FusionError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion_core import AdaptiveTask, ModelPool, RunContext, WeightSource

    #: `down` and `up`
    Adapter = tuple[Tensor, Tensor]


class TrainedAdapter(NamedTuple):
    """An adapter, and the mean distances from the expert's features before and after training."""

    adapter: Adapter
    distances: tuple[float, float]


class Surgery(UnlabeledMixin[SurgeryConfig], Calibration[SurgeryConfig]):
    """Replace each task's features z by z - up relu(down z), close to its expert's features.

    The merge itself does not change. A task's adapter has the shapes (rank, width) and (width,
    rank). It minimises the mean absolute difference from the features that the task's expert
    computes for unlabeled examples, with Adam (betas 0.9, 0.999). As in the authors' code there are
    no biases, `down` starts uniformly within 1 / sqrt(width) of zero, and `up` starts at zero. The
    authors' code sees new examples in every step. This one repeats `examples` examples of each task
    in shuffled rounds. `fusion_core.build_for_task(directory, task)` returns the model of a task.
    Without its adapter that model is the merge.

    Tasks: those whose heads read features (`FeatureTask`). Either one module of the model returns
    the features, or the task passes them through `fusion_core.mark_features`, as for a mean over
    tokens.

    Data: unlabeled examples. Cost: one pass of them through the merge and one through each task's
    expert; training takes seconds.
    """

    config_class = SurgeryConfig

    def calibrate(
        self, merged: WeightSource, pool: ModelPool[Any], context: RunContext
    ) -> WeightSource:
        """Train the adapters; return the merge unchanged."""
        tasks = [_check_features(task) for task in self.adapted(pool, context)]
        experts = {task.name: pool.expert_of(task.name) for task in tasks}
        model = build_live(pool, merged, context.device)
        modules = {task.name: self._find_module(model, task, context) for task in tasks}
        features = {
            task.name: self._compute_features(model, task, context, "the merge's features")
            for task in tasks
        }
        del model
        trained: dict[str, TrainedAdapter] = {}
        with context.progress.track("train adapters", total=len(tasks), unit="tasks") as advance:
            for task in tasks:
                expert = build_live(pool, experts[task.name], context.device)
                target = self._compute_features(expert, task, context, "the expert's features")
                trained[task.name] = self._train(task.name, features[task.name], target, context)
                advance(1, note=task.name)
        _warn_of_farther(trained, context)
        for index, step in enumerate((0, self.config.steps)):
            distances = {
                f"distance/{name}": result.distances[index] for name, result in trained.items()
            }
            context.log(step, distances)
        context.save_task_adapters(
            {name: result.adapter for name, result in trained.items()}, modules
        )
        return merged

    def _find_module(self, model: nn.Module, task: FeatureTask, context: RunContext) -> str:
        batch = self.batches(context).of(task, 0).to(context.device)
        name = find_feature_module(model, task, batch)
        if name is None:
            raise RecipeError(
                f"no module of the model returns the features of task {task.name!r}, so there is "
                "no place for an adapter",
                hint="In the task's class, return fusion_core.mark_features(model, features) from "
                f"`features`, or leave {task.name!r} out of algorithm.tasks.",
            )
        return name

    @torch.no_grad()
    def _compute_features(
        self, model: nn.Module, task: FeatureTask, context: RunContext, label: str
    ) -> Tensor:
        """Return the features of the examples, of shape (examples, ...).

        Raises `FusionError` with `label` for features that are not finite.
        """
        all_examples = replace(self.batches(context), examples=None)
        batches = all_examples.first(task, self.config.examples)
        features = torch.cat(
            [task.features(model, batch.to(context.device).inputs) for batch in batches]
        )
        refuse_nonfinite(features, label, model, task)
        return features

    def _train(
        self, task: str, features: Tensor, target: Tensor, context: RunContext
    ) -> TrainedAdapter:
        batches = self.batches(context)
        down, up = adapter = self._initial_adapter(task, features, context)
        optimiser = torch.optim.Adam(adapter, lr=self.config.lr)
        for step in range(self.config.steps):
            rows = batches.rows(task, step, len(features)).to(features.device)
            optimiser.zero_grad()
            objective = l1_loss(apply_adapter(features[rows], down, up), target[rows])
            objective.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        down, up = down.detach(), up.detach()
        after = l1_loss(apply_adapter(features, down, up), target)
        if not after.isfinite():
            raise FusionError(
                f"the adapter of task {task!r} diverged: its distance from the expert's features "
                f"is {after.item()} after training",
                hint=f"Use a smaller algorithm.lr than {self.config.lr:g}.",
            )
        distances = l1_loss(features, target).item(), after.item()
        return TrainedAdapter((down.cpu(), up.cpu()), distances)

    def _initial_adapter(self, task: str, features: Tensor, context: RunContext) -> Adapter:
        width, generator = features.shape[-1], make_generator(context.seed, f"surgery\0{task}")
        bound = width**-0.5
        down = torch.empty(self.config.rank, width).uniform_(-bound, bound, generator=generator)
        up = features.new_zeros(width, self.config.rank)
        return down.to(features).requires_grad_(), up.requires_grad_()


def _warn_of_farther(trained: Mapping[str, TrainedAdapter], context: RunContext) -> None:
    """Warn of adapters that ended farther from the expert's features than they started."""
    farther = [
        f"{task} ({before:.3g} to {after:.3g})"
        for task, (_, (before, after)) in trained.items()
        if after > before
    ]
    if farther:
        context.warn(
            "adapters that end farther from their expert's features than they start: "
            f"{', '.join(farther)}. Use a smaller lr, or leave out these tasks (option `tasks`)."
        )


def _check_features(task: AdaptiveTask) -> FeatureTask:
    if not isinstance(task, FeatureTask):
        raise RecipeError(
            f"task {task.name!r} has no features apart from its head to adapt",
            hint="Name tasks whose heads read features: --set algorithm.tasks=...",
        )
    return task
