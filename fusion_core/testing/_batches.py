"""Checks of tasks to adapt on: batches are pure functions, heads have gradients.

Examples are whatever a task's `logits` takes: a tensor, or a mapping of tensors. Tasks that are
only measured are passed over.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from fusion_core.contracts.batch import MASK, Batch, Split
from fusion_core.contracts.task_pool import AdaptiveTask, FeatureTask, TaskPool
from fusion_core.errors import FusionError
from fusion_core.testing._component import ComponentSuite
from fusion_core.testing._guards import digest, untouched_globals
from fusion_core.testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest
    from torch import nn

    from fusion_core.plugins.components import Component
    from fusion_core.recipe.config import ComponentConfig

_SIZE = 6

_PROGRAM = """
import json, pickle, sys
from pathlib import Path
from fusion_core.recipe.validation import validated
from fusion_core.contracts.specs import load_target
from fusion_core.testing._batches import batch_digests

target, config, options, models = json.loads(sys.argv[1])
pool = load_target(target)(validated(load_target(config), options))
if models is not None:
    pool = pool.bind(pickle.loads(Path(models).read_bytes()))
print(json.dumps(batch_digests(pool)))
"""


class BatchChecks(ComponentSuite):
    """What every task that algorithms adapt on keeps."""

    # --- batches --------------------------------------------------------------------------------

    def test_batches_are_a_pure_function(self, make: Callable[[], TaskPool[Any]]) -> None:
        """The same arguments give the same examples, whatever was asked for before."""
        first = batch_digests(make())
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
        self,
        make: Callable[[], TaskPool[Any]],
        component: Component[Any],
        config: ComponentConfig,
        request: pytest.FixtureRequest,
    ) -> None:
        """A search can be resumed elsewhere: nothing depends on hash() or on the process."""
        spec, options = component.spec, config.model_dump(mode="json")
        models = None
        if component.load_class().bind is not TaskPool.bind:
            models = str(request.getfixturevalue("tmp_path") / "models")
            Path(models).write_bytes(pickle.dumps(request.getfixturevalue("models")))
        what = json.dumps([spec.target, spec.config, options, models])
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, what],
            env={**os.environ, "PYTHONHASHSEED": "4242"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            fail(f"the pool cannot be made in another process:\n{done.stderr}", "See above.")
        if json.loads(done.stdout.splitlines()[-1]) != batch_digests(make()):
            fail("another process gets other batches.", "Use hashlib, not hash(), to make seeds.")

    def test_steps_and_seeds_give_other_batches(self, pool: TaskPool[Any]) -> None:
        """An adaptive search sees more than one batch, and another seed shows another order."""
        for task, split in _splits(pool):
            if split is Split.TEST:
                continue
            one = _digest(task.batch(0, size=_SIZE, split=split, seed=0))
            for step, seed in ((1, 0), (0, 1)):
                if _digest(task.batch(step, size=_SIZE, split=split, seed=seed)) == one:
                    fail(
                        f"{task.name}: step {step} with seed {seed} gives the {split} examples of "
                        "step 0 with seed 0.",
                        "Let batches depend on step and seed.",
                    )

    def test_batches_have_their_size_and_their_labels(self, pool: TaskPool[Any]) -> None:
        """Labels are on every split but UNLABELED, where nobody may see them."""
        for task, split in _splits(pool):
            batch = task.batch(0, size=_SIZE, split=split, seed=0)
            for name, values in batch.tensors.items():
                if len(values) != _SIZE:
                    said = f"{task.name}: {len(values)} examples, not {_SIZE}"
                    fail(f"{said}{name and f', in {name}'}.", "Keep to `size`.")
            if split is Split.UNLABELED and batch.labels is not None:
                fail(f"{task.name}: UNLABELED batches have labels.", "Leave them out.")
            if split is not Split.UNLABELED and batch.labels is None:
                fail(f"{task.name}: {split} batches have no labels.", "Bring them along.")

    def test_global_state_is_not_changed(self, make: Callable[[], TaskPool[Any]]) -> None:
        """Making a pool and drawing batches leaves the process's random numbers alone."""
        batch_digests(make())
        with untouched_globals("drawing batches"):
            batch_digests(make())

    # --- heads ----------------------------------------------------------------------------------

    def test_scores_have_gradients(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """`logits` is one row of finite scores an example, differentiable in the parameters."""
        model.requires_grad_(True)
        for task, split in _splits(pool):
            batch = task.batch(0, size=_SIZE, split=split, seed=0)
            scores = task.logits(model, batch)
            if scores.dim() != 2 or len(scores) != _SIZE or not scores.isfinite().all():  # noqa: PLR2004
                fail(f"{task.name}: scores of shape {list(scores.shape)}.", "(examples, classes).")
            if batch.labels is not None and int(batch.labels.max()) >= scores.shape[1]:
                fail(f"{task.name}: a label beyond {scores.shape[1]} classes.", "Count from 0.")
            model.zero_grad()
            torch.autograd.backward(scores.logsumexp(-1).sum())
            if not any(p.grad is not None and p.grad.any() for p in model.parameters()):
                fail(f"{task.name}: no gradient reaches the model.", "Do not detach in `logits`.")

    def test_examples_do_not_see_each_other(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """An example's scores are the same in any company: batches can be split and shared."""
        for task in _adaptive(pool):
            batch = task.batch(0, size=_SIZE, split=Split.TEST, seed=0)
            with torch.no_grad():
                together = task.logits(model, batch)
                alone = torch.cat([task.logits(model, batch.part(n, n + 1)) for n in range(_SIZE)])
            if not torch.allclose(together, alone, rtol=1e-3, atol=1e-3):
                fail(f"{task.name}: scores depend on the batch.", "Use the model in eval mode.")

    def test_padding_does_not_change_scores(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """An example scores the same without its padding: batches of other lengths are joined."""
        for task in _adaptive(pool):
            batch = task.batch(0, size=_SIZE, split=Split.TEST, seed=0)
            if batch.mask is None:
                continue
            if batch.mask.all():
                batch = Batch(batch.padded(batch.mask.shape[1] + 1))
            with torch.no_grad():
                padded = task.logits(model, batch)
                cut = torch.cat([task.logits(model, _unpadded(batch, n)) for n in range(_SIZE)])
            if not torch.allclose(padded, cut, rtol=1e-3, atol=1e-3):
                fail(
                    f"{task.name}: scores depend on padding.",
                    f"Give the model the {MASK}, and leave out by it what features are made of.",
                )

    def test_features_and_head_are_the_scores(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """A FeatureTask's `logits` is its head on its features."""
        for task in pool:
            if isinstance(task, FeatureTask):
                batch = task.batch(0, size=_SIZE, split=Split.TEST, seed=0)
                with torch.no_grad():
                    parts = task.head(task.features(model, batch.inputs))
                    same = torch.allclose(parts, task.logits(model, batch), rtol=1e-5, atol=1e-5)
                if not same:
                    fail(f"{task.name}: logits is not head(features).", "Do not override logits.")


def batch_digests(pool: TaskPool[Any], *, backwards: bool = False) -> dict[str, str]:
    """Hash some batches of every task and split."""
    places = [(task, split, step) for task, split in _splits(pool) for step in (0, 1)]
    found = {
        f"{step} of {task.name}, {split}": _digest(
            task.batch(step, size=_SIZE, split=split, seed=7)
        )
        for task, split, step in (reversed(places) if backwards else places)
    }
    return dict(sorted(found.items()))


def _splits(pool: TaskPool[Any]) -> Iterator[tuple[AdaptiveTask, Split]]:
    """Yield every split that a task has; one that it lacks is a FusionError."""
    for task in _adaptive(pool):
        for split in Split:
            try:
                task.batch(0, size=_SIZE, split=split, seed=0)
            except FusionError as error:
                if split is Split.TEST:
                    fail(f"{task.name} has no test examples: {error}", "Every task needs some.")
                continue
            yield task, split


def _digest(batch: Batch) -> str:
    return digest(*(batch.tensors[name] for name in sorted(batch.tensors)))


def _adaptive(pool: TaskPool[Any]) -> Iterator[AdaptiveTask]:
    return (task for task in pool if isinstance(task, AdaptiveTask))


def _unpadded(batch: Batch, number: int) -> Batch:
    """Return one example without the positions that are padding."""
    one = batch.part(number, number + 1)
    seen = cast("torch.Tensor", one.mask).bool()
    return Batch(
        {
            name: values[:, seen[0]] if values.shape[:2] == seen.shape else values
            for name, values in one.tensors.items()
        }
    )
