"""Batches through the live model: shared passes, precision, objectives."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_adamerging.adamerging import AdaMerging
from fusion_adamerging.config import AdaMergingConfig
from fusion_adamerging.objective import disagreement, entropy
from fusion_adamerging.passes import Batches, Passes, expert_logits
from fusion_core import RunContext
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from fusion_core import CheckpointsPool

CPU = torch.device("cpu")
PLENTY = 10**9


class Counting:
    """Counts the calls of a module."""

    def __init__(self, model: nn.Module) -> None:
        self.sizes: list[int] = []
        model.register_forward_hook(lambda _, inputs, __: self.sizes.append(len(inputs[0])))


def _passes(model: nn.Module, tasks: Any, **options: Any) -> Passes:
    return Passes(model, list(tasks), Batches(8, 1), CPU, **options)


def _gradients(model: nn.Module) -> list[torch.Tensor]:
    found = [each.grad.clone() for each in model.parameters()]
    model.zero_grad()
    return found


def test_tasks_that_share_a_pass_give_the_same_gradient(
    make_pool: Callable[..., CheckpointsPool], turned_tasks: Any
) -> None:
    model = make_pool("mlp").config.base.double()
    apart, together = (_passes(model, turned_tasks, shared=shared) for shared in (0, PLENTY))
    seen = apart.backward(3)
    one_by_one = _gradients(model)
    calls = Counting(model)
    assert together.backward(4).keys() == seen.keys()  # what a task takes is measured first
    calls.sizes.clear()
    model.zero_grad()
    again = together.backward(3)
    assert calls.sizes == [24], "three tasks of 8 examples in one pass"
    for name, each in seen.items():
        assert again[name].objective == pytest.approx(each.objective, rel=1e-12)
    torch.testing.assert_close(_gradients(model), one_by_one, rtol=1e-10, atol=1e-14)


def test_as_many_tasks_share_a_pass_as_their_activations_allow(
    make_pool: Callable[..., CheckpointsPool], turned_tasks: Any
) -> None:
    model = make_pool("mlp").config.base
    passes = _passes(model, turned_tasks, shared=PLENTY)
    passes.backward(0)
    (room,) = passes.rooms.values()
    one = PLENTY // room
    # Of 8 examples an MLP keeps the flat inputs, the hidden units after tanh, and the head its own.
    assert 8 * (48 + 16) * 4 <= one <= 8 * (48 + 16 + 4 * 5) * 4 + 200
    calls = Counting(model)
    _passes(model, turned_tasks, shared=int(2.2 * one)).backward(0)
    assert calls.sizes == [8, 1, 16, 8], "two to measure, then two tasks, then the third"


def test_no_activations_outlive_a_step(
    make_pool: Callable[..., CheckpointsPool], turned_tasks: Any
) -> None:
    model = make_pool("mlp").config.base
    made: list[weakref.ref[torch.Tensor]] = []
    for layer in model:
        layer.register_forward_hook(lambda _, __, output: made.append(weakref.ref(output)))
    _passes(model, turned_tasks, shared=PLENTY).backward(0)
    assert len(made) > len(model), "a pass that measures, and those that count"
    assert [each() for each in made] == [None] * len(made)


def test_a_pass_that_may_be_shared_counts_only_what_grows_with_the_tasks(
    make_pool: Callable[..., CheckpointsPool], turned_tasks: Any
) -> None:
    rooms = []
    for bf16 in (False, True):
        passes = _passes(make_pool("mlp").config.base, turned_tasks, shared=PLENTY, bf16=bf16)
        passes.backward(0)
        rooms.extend(passes.rooms.values())
    assert rooms[1] > 1.5 * rooms[0], "weights in bf16 are kept once, activations take half"


def test_a_batch_is_drawn_when_its_pass_begins(
    make_pool: Callable[..., CheckpointsPool], turned_tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, events = make_pool("mlp").config.base, []
    model.register_forward_hook(lambda *_: events.append("pass"))
    batch = turned_tasks.kind.batch
    monkeypatch.setattr(
        turned_tasks.kind,
        "batch",
        lambda task, *a, **k: events.append(task.name) or batch(task, *a, **k),
    )
    _passes(model, turned_tasks, shared=0).backward(0)
    assert [each for each in events if each != "pass"] == ["a", "b", "c"]
    assert events.index("b") > events.index("pass")


def test_classes_that_a_mask_rules_out_add_nothing() -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf]], requires_grad=True)
    narrow = torch.tensor([[1.0, 2.0]], requires_grad=True)
    for objective in (entropy, lambda each: disagreement(each, each.detach() * 2)):
        masked, plain = objective(logits), objective(narrow)
        torch.testing.assert_close(masked, plain)
        (found,) = torch.autograd.grad(masked, logits)
        (expected,) = torch.autograd.grad(plain, narrow)
        torch.testing.assert_close(found[:, :2], expected)
        assert found[0, 2] == 0


def test_tasks_without_features_are_passed_through_one_by_one(
    make_pool: Callable[..., CheckpointsPool], tasks: Any
) -> None:
    model = make_pool("mlp").config.base
    calls = Counting(model)
    _passes(model, tasks, shared=PLENTY).backward(0)
    assert calls.sizes == [8, 8]


def test_bf16_passes_leave_gradients_in_fp32_and_close(
    make_pool: Callable[..., CheckpointsPool], turned_tasks: Any
) -> None:
    model = make_pool("transformer").config.base.eval()
    _passes(model, turned_tasks).backward(0)
    exact = torch.cat([each.flatten() for each in _gradients(model)])
    _passes(model, turned_tasks, bf16=True).backward(0)
    rounded = torch.cat([each.flatten() for each in _gradients(model)])
    assert rounded.dtype is torch.float32
    assert not torch.equal(rounded, exact)
    assert torch.cosine_similarity(rounded, exact, dim=0) > 0.99


def test_what_is_seen_of_a_task_tells_predictions_of_one_class(
    make_pool: Callable[..., CheckpointsPool], tasks: Any
) -> None:
    model = make_pool("mlp").config.base
    assert all(each.only_class is None for each in _passes(model, tasks).backward(0).values())
    with torch.no_grad():
        model[3].bias[2] = 1e3
    seen = _passes(model, tasks).backward(0)
    assert [(each.only_class, each.examples) for each in seen.values()] == [(2, 8), (2, 8)]


def test_entropy_of_a_uniform_prediction_is_log_of_the_classes() -> None:
    logits = torch.tensor([[2.0, 2.0, 2.0, 2.0], [100.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor(4.0).log() / 2  # the second row is certain
    torch.testing.assert_close(entropy(logits), expected)


def test_disagreement_is_zero_between_equals_and_known_by_hand_else() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    torch.testing.assert_close(disagreement(logits, logits + 5), torch.tensor(0.0))
    ours, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log()
    torch.testing.assert_close(disagreement(ours, teacher), expected)


def test_teachers_are_asked_once_for_every_step_to_come(
    make_pool: Callable[..., CheckpointsPool], tasks: Any
) -> None:
    pool = make_pool("mlp")
    expert = pool.build(pool.experts["a"])
    calls = Counting(expert)
    logits = dict(expert_logits(expert, tasks["a"], Batches(8, 1), range(2, 5), CPU))
    assert calls.sizes == [8, 8, 8]
    batch = Batches(8, 1).of(tasks["a"], 3)
    torch.testing.assert_close(logits[3], expert(batch.inputs).detach())


def test_the_teacher_objective_brings_predictions_nearer_to_the_experts(
    make_pool: Callable[..., CheckpointsPool], tasks: Any
) -> None:
    pool = make_pool("mlp", trained=True)
    context = RunContext(tasks=tasks)
    AdaMerging(AdaMergingConfig(objective="teacher", steps=30, lr=0.02)).run(pool, context)
    totals = [step["teacher"] for step in context.metrics.steps.values()]
    assert sum(totals[-5:]) < 0.7 * sum(totals[:5])


def test_a_task_without_an_expert_has_no_teacher(
    make_pool: Callable[..., CheckpointsPool], turned_tasks: Any
) -> None:
    config = AdaMergingConfig(objective="teacher", tasks=["a", "c"])
    with pytest.raises(RecipeError, match="task 'c' has no expert of its own"):
        AdaMerging(config).run(make_pool("mlp"), RunContext(tasks=turned_tasks))


@pytest.mark.parametrize(("chosen", "adapted"), [(None, ["a", "b"]), (["c", "a"], ["c", "a"])])
def test_adapts_on_the_experts_own_tasks_unless_told_others(
    chosen: Any, adapted: list[str], make_pool: Callable[..., CheckpointsPool], turned_tasks: Any
) -> None:
    context = RunContext(tasks=turned_tasks)
    AdaMerging(AdaMergingConfig(steps=1, tasks=chosen)).run(make_pool("mlp"), context)
    seen = [key for key in context.metrics.steps[0] if key.startswith("entropy/")]
    assert seen == [f"entropy/{name}" for name in adapted]
