"""The suite of task pools: batches are pure functions, heads have gradients, metrics are honest."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import nn

from fusion_core.contracts.batch import Split
from fusion_core.contracts.specs import ModelPoolSpec
from fusion_core.contracts.subject import Subject
from fusion_core.contracts.task_pool import AdaptiveTask, FeatureTask, TaskPool
from fusion_core.errors import FusionError, RecipeError
from fusion_core.plugins.manager import load_plugins
from fusion_core.testing._component import ComponentSuite
from fusion_core.testing._guards import digest, no_network, untouched_globals, untouched_modules
from fusion_core.testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fusion_core.contracts.batch import Batch
    from fusion_core.contracts.specs import TaskPoolSpec
    from fusion_core.plugins.components import Component
    from fusion_core.recipe.config import ComponentConfig

_SIZE = 6

_PROGRAM = """
import json, sys
from fusion_core.recipe.validation import validated
from fusion_core.contracts.specs import load_target
from fusion_core.testing._task_pool import batch_digests

target, config, options = json.loads(sys.argv[1])
pool = load_target(target)(validated(load_target(config), options))
print(json.dumps(batch_digests(pool)))
"""


class TaskPoolSuite(ComponentSuite):
    """What every task pool keeps; `options` make a pool with one or two small tasks.

    `model` is a live model that the tasks can look at: by default, the base of the installed model
    pool whose `default_task_pool` this is. Other task pools override the fixture.
    """

    kind: ClassVar[type[Any]] = TaskPool

    @pytest.fixture
    def make(self, component: Component[Any], config: ComponentConfig) -> Callable[[], Any]:
        """Return what makes the pool, anew each time."""
        return lambda: component.load_class()(config)

    @pytest.fixture
    def pool(self, make: Callable[[], TaskPool[Any]]) -> TaskPool[Any]:
        """Return the pool."""
        return make()

    @pytest.fixture
    def model(self, spec: TaskPoolSpec) -> nn.Module:
        """Return a live model in evaluation mode that the tasks can look at."""
        for component in load_plugins().components(ModelPoolSpec):
            if component.spec.default_task_pool == spec.name:
                models = component.load_class()(component.load_config()())
                built: nn.Module = models.build(models.reference)
                return built
        return fail(
            f"no installed model pool has {spec.name!r} as its default task pool.",
            "Add a fixture `model` to this class that returns a live model for the tasks.",
        )

    # --- names ----------------------------------------------------------------------------------

    def test_tasks_are_named_and_in_a_fixed_order(self, make: Callable[[], TaskPool[Any]]) -> None:
        """Names are unique, and each task has the name that it is found by."""
        pool = make()
        names = list(pool.names)
        if not names or len(set(names)) != len(names):
            fail(f"the tasks are {names}.", "Give each task a name of its own.")
        if list(make().names) != names or [task.name for task in pool] != names:
            fail("tasks come in another order, or under other names.", "Keep to `names`.")

    def test_declared_tasks_are_there(self, pool: TaskPool[Any], spec: TaskPoolSpec) -> None:
        """What listings and completion offer is what the pool has."""
        if spec.tasks and not set(pool.names) <= set(spec.tasks):
            fail(f"{set(pool.names) - set(spec.tasks)} is not in the spec's tasks.", "Add it.")

    def test_an_unknown_task_is_refused_with_a_suggestion(self, pool: TaskPool[Any]) -> None:
        """A misspelled name is an error for the user, which brings the right one."""
        right = pool.names[0]
        try:
            pool[f"{right}x"]
        except RecipeError as error:
            if right in str(error):
                return
            fail(f"the error does not suggest {right!r}: {error}", "Offer close matches.")
        except KeyError:
            fail(f"{right + 'x'!r} is a KeyError.", "Raise RecipeError with close matches.")
        fail(f"the pool has a task {right + 'x'!r}.", "Raise RecipeError for unknown names.")

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
        self, make: Callable[[], TaskPool[Any]], component: Component[Any], config: ComponentConfig
    ) -> None:
        """A search can be resumed elsewhere: nothing depends on hash() or on the process."""
        spec, options = component.spec, config.model_dump(mode="json")
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, json.dumps([spec.target, spec.config, options])],
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
            if len(batch) != _SIZE:
                fail(f"{task.name}: {len(batch)} examples, not {_SIZE}.", "Keep to `size`.")
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

    # --- metrics --------------------------------------------------------------------------------

    def test_metrics_are_fractions(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """`evaluate` measures fractions, the main metric first, and the same ones again."""
        first, second = pool.measure(Subject.of(model)), pool.measure(Subject.of(model))
        if first != second:
            fail(f"measuring twice gives {first} and {second}.", "Measure the whole test split.")
        for task, metrics in first.items():
            for name, value in metrics.items():
                if not (math.isfinite(value) and 0 <= value <= 1):
                    fail(f"{task}: {name} is {value}, no fraction.", "Report fractions.")
            if not metrics:
                fail(f"{task}: no metric.", "Return the main metric first.")

    def test_measuring_leaves_everything_alone(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """The model keeps its values and modes, the process its state."""
        pool.measure(Subject.of(model))
        with untouched_modules("evaluate", {"model": model}), untouched_globals("evaluate"):
            pool.measure(Subject.of(model))

    def test_it_works_offline_if_it_says_so(
        self, make: Callable[[], TaskPool[Any]], spec: TaskPoolSpec
    ) -> None:
        """A pool declared `offline` opens no connection."""
        if spec.offline:
            with no_network("the pool"):
                batch_digests(make())


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
