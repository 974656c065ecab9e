"""Faults planted into task pools: the suite catches each, and says what to do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from suites import run_suites

if TYPE_CHECKING:
    from conftest import Site

CAUGHT_BY = {
    "key_error": "test_an_unknown_task_is_refused_with_a_suggestion",
    "another_order": "test_tasks_are_named_and_in_a_fixed_order",
    "global_rng": "test_batches_are_a_pure_function",
    "hashed_seed": "test_batches_are_the_same_in_another_process",
    "one_batch": "test_steps_and_seeds_give_other_batches",
    "lost_mask": "test_batches_have_their_size_and_their_labels",
    "seen_labels": "test_batches_have_their_size_and_their_labels",
    "detached": "test_scores_have_gradients",
    "company": "test_examples_do_not_see_each_other",
    "padded_mean": "test_padding_does_not_change_scores",
    "other_logits": "test_features_and_head_are_the_scores",
    "percent": "test_metrics_keep_their_unit",
    "not_finite": "test_metrics_keep_their_unit",
    "tensor": "test_metrics_keep_their_unit",
    "unmeasured": "test_metrics_keep_their_unit",
    "left_training": "test_measuring_leaves_everything_alone",
    "restless": "test_an_identity_is_the_same_while_nothing_changes",
    "wordless": "test_an_identity_is_the_same_while_nothing_changes",
    "bound_itself": "test_binding_returns_a_pool_and_changes_none",
    "bound_nothing": "test_binding_returns_a_pool_and_changes_none",
}

PLUGIN = f"""
    from fusion_core import TaskPoolSpec, hookimpl

    @hookimpl
    def fusion_register_task_pools():
        for name in ("sound", "plain", *{list(CAUGHT_BY)}):
            yield TaskPoolSpec(
                name=name.replace("_", "-"), summary="Planted.", target=f"faulty_tasks:{{name}}",
                config="fusion_core.recipe.config:ComponentConfig",
            )
"""

TASKS = """
    import copy
    import torch
    from fusion_core import Batch, ComponentConfig, FeatureTask, Metric, Split, Task, TaskPool
    from fusion_core.errors import RecipeError

    class Plain(Task):
        name = "one"
        metrics = (Metric("size", unit="bytes", higher_is_better=False),)

        def evaluate(self, model):
            return {"size": 4.0 * sum(each.numel() for each in model.parameters())}

    class Text(FeatureTask):
        name = "one"

        def batch(self, step, *, size, split, seed):
            generator = torch.Generator().manual_seed(self.number(step, split, seed))
            ids = torch.randint(3, 29, (size, 9), generator=generator)
            mask = torch.ones(size, 9, dtype=torch.long)
            for row in range(size):
                mask[row, 4 + row % 5:] = 0
            labels = torch.randint(3, (size,), generator=generator)
            inputs = {"input_ids": ids * mask, "attention_mask": mask}
            return Batch(inputs, None if split is Split.UNLABELED else labels)

        def number(self, step, split, seed):
            return 1000 * step + 100 * list(Split).index(split) + seed

        def features(self, model, inputs):
            hidden = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1).to(hidden)
            return (hidden * mask).sum(1) / mask.sum(1)

        def head(self, features):
            return features[:, :3]

        def evaluate(self, model):
            batch = self.batch(0, size=32, split=Split.TEST, seed=0)
            batch = batch.to(next(model.parameters()).device)
            with torch.no_grad():
                right = self.logits(model, batch).argmax(-1) == batch.labels
            return {"accuracy": float(right.double().mean())}

    class sound(TaskPool):
        config_class = ComponentConfig
        names = ("one",)
        task = Text
        bound = False

        def bind(self, pool):
            clone = copy.copy(self)
            clone.bound = bool(pool.assets())
            return clone

        def __getitem__(self, name):
            if name != "one":
                raise RecipeError(f"no task {name!r}", hint="Did you mean one?")
            assert self.bound
            return self.task()

    def fault(**methods):
        return type("Faulty", (sound,), {"task": type("FaultyText", (Text,), methods)})

    class plain(sound):
        task = Plain

    class key_error(sound):
        def __getitem__(self, name):
            return {"one": self.task()}[name]

    class another_order(sound):
        def __getitem__(self, name):
            found = super().__getitem__(name)
            found.name = "other"
            return found

    class bound_itself(sound):
        def bind(self, pool):
            self.bound = True
            return self

    class bound_nothing(sound):
        bound = True
        def bind(self, pool):
            pass

    class restless(sound):
        def identity(self, name):
            return {"pool": id(self)}

    class wordless(sound):
        def identity(self, name):
            return {"task": self[name]}

    def sometimes(self, step, *, size, split, seed):
        found = Text.batch(self, step, size=size, split=split, seed=seed)
        ids = found.inputs["input_ids"] + torch.randint(2, (size, 9))
        return Batch({**found.inputs, "input_ids": ids}, found.labels)

    def short(self, step, *, size, split, seed):
        found = Text.batch(self, step, size=size, split=split, seed=seed)
        rows = found.inputs["attention_mask"][1:]
        return Batch({**found.inputs, "attention_mask": rows}, found.labels)

    def labeled(self, step, *, size, split, seed):
        found = Text.batch(self, step, size=size, split=split, seed=seed)
        return Batch(found.inputs, torch.zeros(size, dtype=torch.long))

    def trained(self, model):
        model.train()
        return {"accuracy": 1.0}

    def together(self, model, inputs):
        found = Text.features(self, model, inputs)
        return found - found.mean(0)

    def unmasked(self, model, inputs):
        return model(**inputs).last_hidden_state.mean(1)

    global_rng = fault(batch=sometimes)
    hashed_seed = fault(number=lambda self, *key: hash(str(key)) % 2**40)
    one_batch = fault(number=lambda self, *key: 7)
    lost_mask = fault(batch=short)
    seen_labels = fault(batch=labeled)
    detached = fault(head=lambda self, features: features.detach()[:, :3] + torch.zeros(3, requires_grad=True))
    company = fault(features=together)
    padded_mean = fault(features=unmasked)
    other_logits = fault(logits=lambda self, model, batch: 2 * Text.logits(self, model, batch))
    percent = fault(evaluate=lambda self, model: {"accuracy": 37.0})
    not_finite = fault(evaluate=lambda self, model: {"accuracy": float("inf")})
    tensor = fault(evaluate=lambda self, model: {"accuracy": torch.tensor(0.5)})
    unmeasured = fault(metrics=(Metric("perplexity", unit=""),))
    left_training = fault(evaluate=trained)
"""  # noqa: E501 - the fault is on one line

TESTS = """
    import pytest
    from fusion_core import TaskPoolSpec
    from fusion_core.plugins.manager import load_plugins
    from fusion_testing import TaskPoolSuite, tiny_text_pool

    for each in load_plugins().components(TaskPoolSpec):
        if each.spec.summary == "Planted.":
            fixtures = {
                "spec": pytest.fixture(lambda self, spec=each.spec: spec),
                "models": pytest.fixture(lambda self: tiny_text_pool()),
            }
            name = "Test_" + each.spec.name.replace("-", "_")
            globals()[name] = type(name, (TaskPoolSuite,), fixtures)
"""


@pytest.fixture(scope="module")
def planted(
    tmp_path_factory: pytest.TempPathFactory, make_site: type[Site]
) -> dict[str, dict[str, str]]:
    root = tmp_path_factory.mktemp("planted")
    (root / "site").mkdir()
    site = make_site(root / "site")
    files = {"faulty_tasks.py": TASKS}
    site.install("faulty-plugin", PLUGIN, requires=("fusion-core>=0.1,<0.2",), files=files)
    chosen = [f"(Test_{fault} and {check})" for fault, check in CAUGHT_BY.items()]
    return run_suites(root, TESTS, ["Test_sound", "Test_plain", *chosen])


@pytest.mark.thorough
@pytest.mark.parametrize("fault", CAUGHT_BY)
def test_a_planted_fault_is_caught_by_the_check_that_is_about_it(
    planted: dict[str, dict[str, str]], fault: str
) -> None:
    assert CAUGHT_BY[fault] in planted[fault], planted[fault]
    assert re.search(r"\n\nTo fix it: \w", planted[fault][CAUGHT_BY[fault]])


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["sound", "plain"])
def test_what_is_sound_passes(planted: dict[str, dict[str, str]], name: str) -> None:
    assert planted[name].keys() == {"test_the_package_is_typed"}  # which a module cannot be
