"""Checks of batches: pure functions of step, size, split and seed, in any process.

Examples are whatever a task's `logits` takes: a tensor, or a mapping of tensors. Tasks that are
only measured are passed over.
"""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core.contracts.batch import Split
from fusion_core.contracts.task_pool import FeatureTask, TaskPool
from fusion_testing._component import ComponentSuite
from fusion_testing._elsewhere import ElsewhereError, call_elsewhere, describe_tasks
from fusion_testing._examples import SIZE, batch_digest, batch_digests, draw, every_split
from fusion_testing._guards import untouched_globals
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from fusion_core.plugins.components import Component
    from fusion_core.recipe.config import ComponentConfig

_HERE = "fusion_testing._elsewhere"
_SIZES = (1, 2, 5, SIZE)


class BatchChecks(ComponentSuite):
    """What the batches of every task keep; a part of `TaskPoolSuite`."""

    @pytest.fixture
    def recipe(
        self,
        component: Component[Any],
        config: ComponentConfig,
        request: pytest.FixtureRequest,
    ) -> list[Any]:
        """Return what another process makes the pool from: target, options and pickled models."""
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
        """The same arguments give the same examples, whatever was asked for before, and when."""
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
                f"batch {changed} differs when asked for again.",
                "Let it depend on step, size, split and seed alone: they seed a torch.Generator.",
            )

    def test_batches_are_the_same_in_another_process(
        self, make: Callable[[], TaskPool[Any]], recipe: list[Any]
    ) -> None:
        """A search can be resumed elsewhere: nothing depends on hash() or on the process."""
        pool = make()
        try:
            there = call_elsewhere(f"{_HERE}:tasks_elsewhere", *recipe, names=list(pool.names))
        except ElsewhereError as error:
            fail(f"the pool cannot be made in another process:\n{error}", "See above.")
        here = json.loads(json.dumps(describe_tasks(pool)))
        for what, value in here.items():
            if there[what] != value:
                fail(
                    f"{what} differs in another process: {_shorten(value)} here, "
                    f"{_shorten(there[what])} there.",
                    "Use hashlib, not hash(), to make seeds; keep names in a tuple or list, never "
                    "in a set.",
                )

    def test_heads_are_the_same_in_another_process(
        self, pool: TaskPool[Any], model: nn.Module, recipe: list[Any], tmp_path: Path
    ) -> None:
        """A head's scores depend on the features and the task alone."""
        features = {}
        for task in pool:
            if isinstance(task, FeatureTask):
                batch = draw(task, Split.TEST, SIZE)
                with torch.no_grad():
                    features[task.name] = task.features(model, batch.inputs).contiguous()
        if not features:
            pytest.skip("no task has a head of its own that reads features")
        torch.save(features, tmp_path / "features.pt")
        try:
            there = call_elsewhere(
                f"{_HERE}:heads_on",
                str(tmp_path / "features.pt"),
                *recipe,
                names=list(pool.names),
            )
        except ElsewhereError as error:
            fail(f"`head` fails in another process:\n{error}", "See above.")
        for name, values in features.items():
            task = pool[name]
            with torch.no_grad():
                here = task.head(values) if isinstance(task, FeatureTask) else values
            if not torch.allclose(torch.tensor(there[name]).to(here), here, rtol=1e-3, atol=1e-3):
                fail(
                    f"{name}: `head` gives other scores of the same features in another process.",
                    "Keep its weights in a file, or seed them by hashlib, not by hash().",
                )

    def test_steps_and_seeds_give_other_batches(self, pool: TaskPool[Any]) -> None:
        """An adaptive search sees more than one batch, and another seed shows another order."""
        for task, split in every_split(pool):
            if split is Split.TEST:
                continue
            one = batch_digest(draw(task, split, SIZE))
            for step, seed in ((1, 0), (0, 1)):
                if batch_digest(draw(task, split, SIZE, step=step, seed=seed)) == one:
                    fail(
                        f"{task.name}: step {step} with seed {seed} gives the {split} examples of "
                        "step 0 with seed 0.",
                        "Let batches depend on step and seed.",
                    )

    def test_batches_have_their_size_and_their_labels(self, pool: TaskPool[Any]) -> None:
        """Labels are on every split but UNLABELED, where nobody may see them."""
        for task, split in every_split(pool):
            for size in _SIZES:
                batch = draw(task, split, size)
                if split is Split.UNLABELED and batch.labels is not None:
                    fail(f"{task.name}: UNLABELED batches have labels.", "Leave them out.")
                if split is not Split.UNLABELED and batch.labels is None:
                    fail(f"{task.name}: {split} batches have no labels.", "Bring them along.")

    def test_global_state_is_not_changed(self, make: Callable[[], TaskPool[Any]]) -> None:
        """Making a pool and drawing batches leaves the process's random numbers alone."""
        batch_digests(make())
        with untouched_globals("drawing batches"):
            batch_digests(make())


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."  # noqa: PLR2004 - a line
