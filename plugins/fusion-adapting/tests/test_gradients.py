"""Squared gradients equal a loop over unpadded examples and labels."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from padded_words import CLASSES, SAMPLES, SIZE, WordModel, WordTask, WordTasks, examples, word_pool

from fusion_adapting import Batches, compute_squared_gradients, squared_gradients
from fusion_testing import TinyTasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from fusion_core import Batch
    from pools_checkpoints import CheckpointsPool

OPTIONS: dict[str, Any] = {"samples": SAMPLES, "batch_size": SIZE}
#: Of a tensor's largest entry. Forward and back there are twelve products of at most six terms, and
#: fp32 rounds each term by 6e-8: 4.3e-6 of a gradient, and twice as much of its square.
FP32 = 1e-5


def compute_by_hand(model: nn.Module, texts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return E over examples and predicted labels of the squared gradient, in float64."""
    model = copy.deepcopy(model).double().requires_grad_(True)
    named = dict(model.named_parameters())
    sums = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for text in texts:
        for label in range(CLASSES):
            model.zero_grad()
            probabilities = model(text[None], torch.ones(1, len(text)))[0].softmax(0)
            probabilities[label].log().backward()
            for name, parameter in named.items():
                if parameter.grad is not None:
                    sums[name] += float(probabilities[label].detach()) * parameter.grad.square()
    return {name: total.detach() / len(texts) for name, total in sums.items()}


@pytest.mark.sampled(2)
@pytest.mark.sampled(3)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, FP32)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("at_once", [1, 2, 7, None])
def test_squared_gradients_equal_a_loop_over_examples_and_labels(
    at_once: int | None,
    seed: int,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if at_once is not None:
        size = sum(parameter.numel() for parameter in WordModel().parameters()) * dtype.itemsize
        monkeypatch.setattr("fusion_adapting._squares._BYTES_ON_CPU", at_once * size)
    pool, tasks = word_pool(seed, dtype), WordTasks()
    results = dict(squared_gradients(pool, tasks, seed=seed, **OPTIONS))
    assert list(results) == ["a", "b", "c"]
    for expert, tensors in results.items():
        model = pool.build(pool.experts[expert])
        expected = compute_by_hand(model, examples(tasks[expert], seed))
        assert tensors.keys() == {*expected, "output.weight", "pooler.weight"}
        for name, value in expected.items():
            assert tensors[name].dtype is dtype
            assert tensors[name].shape == value.shape
            assert (tensors[name] - value).abs().max() <= tolerance * value.abs().max()
            assert (value.abs().max() > 0) == (not name.startswith("idle"))
        assert tensors["pooler.weight"] is tensors["mix.weight"]


class Counting(WordTask):
    """Counts the passes; on request does something that `vmap` cannot handle, or fails."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.passes, self.branches, self.fails = 0, False, False

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        self.passes += 1
        if self.branches and self.passes > 2:
            assert batch.tensors["input_ids"].sum() >= 0
        if self.fails:
            raise RuntimeError("the model is broken")
        return super().logits(model, batch)


def squares_by(task: Counting) -> dict[str, torch.Tensor]:
    model = word_pool(0, torch.float64).config.models["a"]
    batches = Batches(SIZE, 0).first(task, 3 * SIZE)
    return compute_squared_gradients(model, dict(model.named_parameters()), task, batches)


def test_a_batch_takes_two_passes_or_one_per_example_if_vmap_fails() -> None:
    together, apart = Counting("a"), Counting("a")
    apart.branches = True
    expected = squares_by(together)
    for name, squares in squares_by(apart).items():
        largest = float(expected[name].max())
        torch.testing.assert_close(squares, expected[name], rtol=0, atol=1e-12 * largest)
    assert together.passes == 2 * 3
    assert apart.passes == 2 + (2 + SIZE) + (1 + SIZE)


def test_an_error_of_the_model_is_raised_unchanged() -> None:
    task = Counting("a")
    task.fails = True
    with pytest.raises(RuntimeError, match="the model is broken"):
        squares_by(task)


def test_sparse_and_recurrent_layers_are_supported(
    make_pool: Callable[..., CheckpointsPool],
) -> None:
    pool = make_pool("recurrent", experts=1)
    ((_, squares),) = squared_gradients(pool, TinyTasks(), samples=3)
    assert squares.keys() == dict(pool.config.base.named_parameters()).keys()
    assert {name for name, square in squares.items() if not square.any()} == {
        "idle.weight",
        "idle.bias",
    }


def draw_once(model: nn.Module, seed: int, task: WordTask) -> dict[str, torch.Tensor]:
    batches = Batches(SIZE, 0).first(task, SIZE)
    parameters = {"up.weight": model.up.weight}
    return compute_squared_gradients(model, parameters, task, batches, exact_up_to=2, seed=seed)


def test_labels_of_many_classes_are_drawn_without_bias() -> None:
    model, task = word_pool(0, torch.float64).config.models["a"], WordTask("a")
    exact = compute_by_hand(model, examples(task, 0)[:SIZE])["up.weight"]
    several = torch.stack([draw_once(model, seed, task)["up.weight"] for seed in range(400)])
    error = several.std(0) / len(several) ** 0.5
    assert ((several.mean(0) - exact).abs() < 5 * error).all()
    assert torch.equal(several[7], draw_once(model, 7, task)["up.weight"]), "a function of the seed"
    assert not torch.equal(several[7], several[8])


def test_drawn_labels_do_not_depend_on_batches() -> None:
    model, task = word_pool(0, torch.float64).config.models["a"], WordTask("a")
    parameters = dict(model.named_parameters())
    whole = Batches(3 * SIZE, 0).of(task, 0)
    results = [
        compute_squared_gradients(model, parameters, task, batches, exact_up_to=0, seed=3)
        for batches in ([whole], [whole.part(n, n + 1) for n in range(len(whole))])
    ]
    for name, values in results[0].items():
        torch.testing.assert_close(results[1][name], values, rtol=1e-9, atol=1e-15)


def test_a_masked_class_adds_nothing() -> None:
    class Masked(WordTask):
        def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            return super().logits(model, batch).index_fill(1, torch.tensor(2), -torch.inf)

    class Narrow(WordTask):
        def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            return super().logits(model, batch)[:, :2]

    pool = word_pool(0, torch.float64)
    masked, narrow = (
        next(squared_gradients(pool, WordTasks(kind=kind), **OPTIONS))[1]
        for kind in (Masked, Narrow)
    )
    for name, value in narrow.items():
        torch.testing.assert_close(masked[name], value)


def test_requires_grad_is_restored_after_an_error() -> None:
    class Failing(WordTask):
        def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            assert model.up.weight.requires_grad
            raise OSError("the data is gone")

    model = WordModel().eval().requires_grad_(False)
    with pytest.raises(OSError, match="the data is gone"):
        draw_once(model, 0, Failing("a"))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_model_does_not_change() -> None:
    model = WordModel().eval()
    model.mix.weight.grad = torch.ones(6, 6)
    before = copy.deepcopy(model.state_dict())
    draw_once(model, 0, WordTask("a"))
    assert torch.equal(model.mix.weight.grad, torch.ones(6, 6))
    assert model.up.weight.grad is None
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
