"""Passes of batches through a live model: sharing, precision."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fusion_adapting import Batches, Passes, disagreement, log_probabilities
from fusion_core import Batch, Split, shuffled_rows
from fusion_core.errors import RecipeError
from fusion_testing import TinyTasks, tiny_pool

CPU = torch.device("cpu")
PLENTY = 10**9


#: tasks that can share a pass: every second one's head reads features
FEATURES = [TinyTasks("abcdef")[name] for name in "bdf"]


def entropy(_task: str, _step: int, logits: torch.Tensor) -> torch.Tensor:
    logs = log_probabilities(logits)
    return -(logs.exp() * logs).sum(-1).mean()


def tiny_model(kind: str) -> nn.Module:
    pool = tiny_pool(kind)
    assert pool.base is not None
    return pool.build(pool.base)


class Counting:
    """Counts the calls of a module."""

    def __init__(self, model: nn.Module) -> None:
        self.sizes: list[int] = []
        model.register_forward_hook(lambda _, inputs, __: self.sizes.append(len(inputs[0])))


def _passes(model: nn.Module, tasks: Any, **options: Any) -> Passes:
    return Passes(model, tasks, Batches(8, 1), CPU, **options)


def _gradients(model: nn.Module) -> list[torch.Tensor]:
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return gradients


def test_tasks_that_share_a_pass_give_the_same_gradient() -> None:
    model = tiny_model("mlp").double()
    apart, together = (_passes(model, FEATURES, shared=shared) for shared in (0, PLENTY))
    outcomes = apart.backward(3, entropy)
    one_by_one = _gradients(model)
    calls = Counting(model)
    assert together.backward(4, entropy).keys() == outcomes.keys()  # the first pass measures a task
    calls.sizes.clear()
    model.zero_grad()
    again = together.backward(3, entropy)
    assert calls.sizes == [24], "three tasks of 8 examples in one pass"
    for name, outcome in outcomes.items():
        assert again[name].objective == pytest.approx(outcome.objective, rel=1e-12)
    torch.testing.assert_close(_gradients(model), one_by_one, rtol=1e-10, atol=1e-14)


def test_as_many_tasks_share_a_pass_as_their_activations_allow() -> None:
    model = tiny_model("mlp")
    passes = _passes(model, FEATURES, shared=PLENTY)
    passes.backward(0, entropy)
    (capacity,) = passes.capacities.values()
    one = PLENTY // capacity
    # An MLP saves the flat inputs and the hidden units of 8 examples, and the head saves its own.
    assert 8 * (48 + 16) * 4 <= one <= 8 * (48 + 16 + 4 * 5) * 4 + 200
    calls = Counting(model)
    _passes(model, FEATURES, shared=int(2.2 * one)).backward(0, entropy)
    assert calls.sizes == [8, 1, 16, 8], "two to measure, then two tasks, then the third"


def test_task_parameters_replace_the_models_while_the_task_passes() -> None:
    model = tiny_model("mlp").double()
    parameters = {
        name: {"3.weight": nn.Parameter(model[3].weight.detach() * factor)}
        for name, factor in (("b", 2.0), ("f", -1.0))
    }
    calls = Counting(model)
    outcomes = _passes(model, FEATURES, shared=PLENTY, task_parameters=parameters).backward(
        0, entropy
    )
    assert 8 in calls.sizes
    assert 16 not in calls.sizes, "a task with parameters of its own shares no pass"
    ours = [*_gradients(model), *(weights["3.weight"].grad for weights in parameters.values())]
    assert model[3].weight.grad is None
    for task in FEATURES:
        batch = Batches(8, 1).of(task, 0)
        weights = parameters.get(task.name, {})
        logits = task.head(functional_call(model, dict(weights), (batch.inputs.double(),)))
        objective = entropy(task.name, 0, logits)
        assert outcomes[task.name].objective == pytest.approx(objective.item(), rel=1e-12)
        for weight in weights.values():
            weight.grad = None
        objective.backward()
    theirs = [*_gradients(model), *(weights["3.weight"].grad for weights in parameters.values())]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_no_activations_outlive_a_step() -> None:
    model = tiny_model("mlp")
    outputs: list[weakref.ref[torch.Tensor]] = []
    for layer in model:
        layer.register_forward_hook(lambda _, __, output: outputs.append(weakref.ref(output)))
    _passes(model, FEATURES, shared=PLENTY).backward(0, entropy)
    assert len(outputs) > len(model), "a pass that measures, and those that count"
    assert [reference() for reference in outputs] == [None] * len(outputs)


def test_only_activations_that_grow_with_the_tasks_count_for_sharing() -> None:
    capacities = []
    for bf16 in (False, True):
        passes = _passes(tiny_model("mlp"), FEATURES, shared=PLENTY, bf16=bf16)
        passes.backward(0, entropy)
        capacities.extend(passes.capacities.values())
    assert capacities[1] > 1.5 * capacities[0], (
        "weights in bf16 are saved once, activations take half"
    )


def test_a_batch_is_drawn_when_its_pass_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    model, events = tiny_model("mlp"), []
    model.register_forward_hook(lambda *_: events.append("pass"))
    batch = type(FEATURES[0]).batch
    monkeypatch.setattr(
        type(FEATURES[0]),
        "batch",
        lambda task, *a, **k: events.append(task.name) or batch(task, *a, **k),
    )
    _passes(model, FEATURES, shared=0).backward(0, entropy)
    assert [event for event in events if event != "pass"] == ["b", "d", "f"]
    assert events.index("d") > events.index("pass")


def test_tasks_without_features_pass_one_by_one() -> None:
    model = tiny_model("mlp")
    calls = Counting(model)
    _passes(model, [TinyTasks()[name] for name in "ac"], shared=PLENTY).backward(0, entropy)
    assert calls.sizes == [8, 8]


def test_bf16_passes_leave_gradients_in_fp32_and_close() -> None:
    model = tiny_model("transformer")
    _passes(model, FEATURES).backward(0, entropy)
    exact = torch.cat([gradient.flatten() for gradient in _gradients(model)])
    _passes(model, FEATURES, bf16=True).backward(0, entropy)
    rounded = torch.cat([gradient.flatten() for gradient in _gradients(model)])
    assert rounded.dtype is torch.float32
    assert not torch.equal(rounded, exact)
    assert torch.cosine_similarity(rounded, exact, dim=0) > 0.99


def test_the_outcome_of_a_task_is_its_objective_and_logits() -> None:
    model, task = tiny_model("mlp"), FEATURES[0]
    outcome = _passes(model, FEATURES, shared=PLENTY).backward(2, entropy)[task.name]
    logits = task.logits(model, Batches(8, 1).of(task, 2)).detach()
    torch.testing.assert_close(outcome.logits, logits)
    assert not outcome.logits.requires_grad
    assert outcome.objective == pytest.approx(float(entropy(task.name, 2, logits)))


def test_disagreement_is_zero_between_equals_and_otherwise_as_computed_by_hand() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    torch.testing.assert_close(disagreement(logits, logits + 5), torch.tensor(0.0))
    ours, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log()
    torch.testing.assert_close(disagreement(ours, teacher), expected)


@pytest.mark.parametrize(("examples", "size"), [(20, 8), (4, 8), (16, 8)])
def test_limited_examples_are_repeated_in_shuffled_rounds(examples: int, size: int) -> None:
    task = TinyTasks("a")["a"]
    batches, first = Batches(size, 1, examples=examples), Batches(min(size, examples), 1)
    whole = {tuple(row) for batch in first.first(task, examples) for row in _rows(batch)}
    seen = [_rows(batches.of(task, step)) for step in range(12)]
    assert {len(rows) for rows in seen} == {min(size, examples)}
    assert {tuple(row) for rows in seen for row in rows} == whole
    assert seen[0] != seen[examples // min(size, examples)], "another round, another order"
    assert seen[7] == _rows(Batches(size, 1, examples=examples).of(task, 7))


_TINY = type(TinyTasks("a")["a"])


class _FewTask(_TINY):  # type: ignore[misc, valid-type]
    """A task with five unlabeled examples, in whose batches none repeats."""

    def count(self, split: Split) -> int:
        return 5 if split is Split.UNLABELED else 100

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        whole = super().batch(0, size=self.count(split), split=split, seed=0)
        assert size <= len(whole), "an impossible size"
        return whole.rows(shuffled_rows(step, size, len(whole), key=str(seed)))


@pytest.mark.parametrize("examples", [None, 3, 5, 9])
@pytest.mark.parametrize("size", [2, 4, 16])
def test_a_batch_takes_what_there_is(size: int, examples: int | None) -> None:
    task = _FewTask("a")
    batches = Batches(size, 1, examples=examples)
    expected = min(5, examples or 5)
    assert batches.available(task) == expected
    seen = [_rows(batches.of(task, step)) for step in range(6)]
    assert {len(rows) for rows in seen} == {min(size, expected)}
    assert all(len({tuple(row) for row in rows}) == len(rows) for rows in seen)
    different = {tuple(row) for rows in seen for row in rows}
    assert len(different) == expected
    test_split = Batches(size, 1, Split.TEST, examples)
    assert len(test_split.of(task, 0)) == min(size, examples or 100)


@pytest.mark.parametrize(("size", "sizes"), [(1, [1] * 5), (2, [2, 2]), (3, [2, 2]), (9, [5])])
def test_the_first_batches_give_few_examples_once(size: int, sizes: list[int]) -> None:
    task = _FewTask("a")
    for samples in (5, 50):
        first = list(map(_rows, Batches(size, 1).first(task, samples)))
        assert [len(rows) for rows in first] == sizes
        assert len({tuple(row) for rows in first for row in rows}) == sum(sizes)


def test_a_task_without_examples_has_no_first_batch() -> None:
    task = _FewTask("a")
    task.count = lambda split: 0
    with pytest.raises(RecipeError, match="invalid batch size 0: there are 0 examples"):
        list(Batches(4, 1).first(task, 8))


def test_a_task_that_does_not_count_has_unlimited_examples() -> None:
    task = TinyTasks("a")["a"]
    assert Batches(8, 1).available(task) == math.inf
    assert Batches(8, 1, examples=20).available(task) == 20
    assert len(Batches(8, 1).of(task, 0)) == 8


def _rows(batch: Batch) -> list[list[float]]:
    assert isinstance(batch.inputs, torch.Tensor)
    return batch.inputs.flatten(1).tolist()
