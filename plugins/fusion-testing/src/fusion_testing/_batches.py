"""Checks of batches: pure functions of step, size, split and seed, in any process.

The inputs of a batch are a tensor or a mapping of tensors. Tasks without batches are skipped.
"""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from fusion_core.contracts.batch import Split
from fusion_core.contracts.task_pool import FeatureTask, TaskPool
from fusion_testing._component import ComponentSuite
from fusion_testing._elsewhere import call_elsewhere, describe_tasks
from fusion_testing._examples import SIZE, batch_digest, batch_digests, draw, every_split
from fusion_testing._guards import untouched_globals
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from fusion_core.plugins.components import Component
    from fusion_core.recipe.config import ComponentConfig

_CHILD = "fusion_testing._elsewhere"
_SIZES = (1, 2, 5, SIZE)


class BatchChecks(ComponentSuite):
    """Checks of every task's batches; part of `TaskPoolSuite`."""

    @pytest.fixture
    def recipe(
        self,
        component: Component[Any],
        config: ComponentConfig,
        request: pytest.FixtureRequest,
    ) -> list[Any]:
        """Return what another process needs to make the pool: target, options, pickled models."""
        models = None
        if component.load_class().bind is not TaskPool.bind:
            models = str(request.getfixturevalue("tmp_path") / "models")
            Path(models).write_bytes(pickle.dumps(request.getfixturevalue("models")))
        return [
            component.spec.target,
            component.spec.config,
            config.model_dump(mode="json"),
            models,
        ]

    def test_batches_are_a_pure_function(
        self, make: Callable[[], TaskPool[Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same arguments give the same examples at any time, in any order of calls."""
        first = batch_digests(make())
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 100_001.5)
        monkeypatch.setattr(time, "time_ns", lambda: int((now() + 100_001.5) * 1e9))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1234)
            second = batch_digests(make(), backwards=True)
        if first != second:
            changed = next(name for name, value in first.items() if second[name] != value)
            fail(
                f"batch {changed} differs on the second call with the same arguments.",
                "Let `batch` depend on step, size, split and seed alone: seed a torch.Generator "
                "with them, and use neither the clock nor global random numbers.",
            )

    def test_batches_are_the_same_in_another_process(
        self, make: Callable[[], TaskPool[Any]], recipe: list[Any]
    ) -> None:
        """Nothing depends on hash() or on the process: a search can be resumed elsewhere."""
        pool = make()
        remote = call_elsewhere(f"{_CHILD}:tasks_elsewhere", *recipe, names=list(pool.names))
        here = json.loads(json.dumps(describe_tasks(pool)))
        for what, value in here.items():
            if remote[what] != value:
                fail(
                    f"{what} differs in another process: expected {_shorten(value)}, got "
                    f"{_shorten(remote[what])}.",
                    "Make seeds with hashlib, not with hash(). Keep names in a tuple or list, not "
                    "in a set.",
                )

    def test_heads_are_the_same_in_another_process(
        self, pool: TaskPool[Any], model: nn.Module, recipe: list[Any], tmp_path: Path
    ) -> None:
        """The scores of a head depend on the features and the task alone."""
        features = {}
        for task in pool:
            if isinstance(task, FeatureTask):
                batch = draw(task, Split.TEST, SIZE)
                with torch.no_grad():
                    features[task.name] = task.features(model, batch.inputs).contiguous()
        if not features:
            pytest.skip("no task is a FeatureTask")
        file = str(tmp_path / "features.pt")
        torch.save(features, file)
        remote = call_elsewhere(f"{_CHILD}:heads_on", file, *recipe, names=list(pool.names))
        for name, values in features.items():
            task = cast("FeatureTask", pool[name])
            with torch.no_grad():
                scores = task.head(values)
            if not torch.allclose(
                torch.tensor(remote[name]).to(scores), scores, rtol=1e-3, atol=1e-3
            ):
                fail(
                    f"{name}: `head` returns different scores for the same features in another "
                    "process.",
                    "Keep the head's weights in a file, or seed them with hashlib, not with "
                    "hash().",
                )

    def test_steps_and_seeds_give_other_batches(self, pool: TaskPool[Any]) -> None:
        """Different steps give different batches; so do different seeds."""
        for task, split in every_split(pool):
            if split is Split.TEST:
                continue
            first = batch_digest(draw(task, split, SIZE))
            for step, seed in ((1, 0), (0, 1)):
                if batch_digest(draw(task, split, SIZE, step=step, seed=seed)) == first:
                    fail(
                        f"{task.name}: {split} batches of step {step} with seed {seed} and of step "
                        "0 with seed 0 are equal.",
                        "Let `batch` draw its examples by step and seed, as "
                        "fusion_core.shuffled_rows does.",
                    )

    def test_batches_have_their_size_and_their_labels(self, pool: TaskPool[Any]) -> None:
        """Batches have the requested size. All splits but UNLABELED have labels."""
        for task, split in every_split(pool):
            for size in _SIZES:
                batch = draw(task, split, size)
                if split is Split.UNLABELED and batch.labels is not None:
                    fail(
                        f"{task.name}: UNLABELED batches have labels.",
                        "Return Batch(inputs, None) for Split.UNLABELED.",
                    )
                if split is not Split.UNLABELED and batch.labels is None:
                    fail(
                        f"{task.name}: {split} batches have no labels.",
                        "Return Batch(inputs, labels) for every split but UNLABELED.",
                    )

    def test_global_state_is_not_changed(self, make: Callable[[], TaskPool[Any]]) -> None:
        """Making a pool and drawing batches leaves global random numbers unchanged."""
        batch_digests(make())
        with untouched_globals("drawing batches"):
            batch_digests(make())


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."  # noqa: PLR2004 - a line
