"""Experts predict each distinct example once, and their predictions are held in compact form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion_adapting import Batches, Predictions, ask_teachers, disagreement
from fusion_adapting._teachers import FEW, REST, SMALL
from fusion_core import Batch, Progress
from fusion_core.errors import RecipeError
from fusion_testing import TinyTasks, tiny_pool

_CPU: dict[str, Any] = {"device": torch.device("cpu"), "progress": Progress()}
_WORDS = 4 * SMALL


class _Words:
    """A task whose model returns scores of words as they are in the inputs."""

    name = "a"

    def __init__(self, *batches: Batch) -> None:
        self.batches, self.asked = batches, 0

    def count(self, _: object) -> None:
        """Return None: the number of examples is unknown."""

    def batch(self, step: int, **_: object) -> Batch:
        return self.batches[step]

    def logits(self, _: object, batch: Batch) -> torch.Tensor:
        self.asked += len(batch)
        return batch.tensors["scores"]


def _ask(*batches: Batch, temperature: float = 1.0) -> tuple[Predictions, _Words]:
    task: Any = _Words(*batches)
    pool, steps = tiny_pool("mlp"), len(batches)
    asked = ask_teachers(pool, [task], Batches(2, 0), steps, temperature=temperature, **_CPU)
    return asked["a"], task


def _scores(*, scale: float = 1.0, examples: int = 3, words: int = _WORDS) -> torch.Tensor:
    return scale * torch.randn(examples, words, generator=torch.Generator().manual_seed(0))


def test_an_expert_predicts_each_example_once_whatever_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, task, batches = tiny_pool("mlp"), TinyTasks()["b"], Batches(8, 1, examples=16)
    asked = []
    task.logits = lambda model, batch, run=task.logits: (
        asked.append(len(batch)) or run(model, batch)
    )
    predictions = ask_teachers(pool, [task], batches, 12, temperature=2.0, **_CPU)["b"]
    assert sum(asked) == 16
    expert = pool.build(pool.expert_of("b"))
    for step in range(12):
        expected = (type(task).logits(task, expert, batches.of(task, step)) / 2).log_softmax(1)
        rows = predictions.logs[predictions.rows[step]]
        torch.testing.assert_close(rows, expected.detach())


def test_padding_does_not_make_an_example_another_one() -> None:
    scores = _scores(examples=2, words=5)
    tokens = torch.tensor([[1, 2, 0], [1, 2, 3]])
    whole = Batch({"input_ids": tokens, "attention_mask": tokens.clamp_max(1), "scores": scores})
    short = whole.part(0, 1).tensors
    cut = Batch({**short, "input_ids": tokens[:1, :2], "attention_mask": torch.ones(1, 2)})
    same = Batch({**cut.tensors, "attention_mask": torch.ones(1, 2, dtype=torch.long)})
    predictions, task = _ask(whole, same)
    assert task.asked == 2
    assert predictions.rows[1].tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_words_kept_as_the_likeliest_change_neither_value_nor_gradient(
    dtype: torch.dtype,
) -> None:
    teacher = _scores(words=50, scale=3).to(dtype).log_softmax(1)
    logits = torch.randn(3, 50, dtype=dtype, requires_grad=True)
    rows = {0: torch.tensor([2, 0, 1])}
    logs, classes = teacher.topk(50)
    results = []
    for content in ((teacher, None), (logs, classes.int())):
        predictions = Predictions(*content, rows, [range(3)])
        value = predictions.disagreement(0, logits)
        results.append((value, *torch.autograd.grad(value, logits)))
    for whole, likeliest in zip(*results, strict=True):
        torch.testing.assert_close(likeliest, whole)
    torch.testing.assert_close(results[0][0], disagreement(logits, teacher[rows[0]]))


def test_of_a_sharp_prediction_a_few_words_are_kept_and_the_rest_counts_as_one() -> None:
    scores = _scores(scale=8)
    predictions, _ = _ask(Batch({"scores": scores}))
    assert predictions.classes is not None
    assert predictions.logs.shape[1] < _WORDS / 3
    assert (predictions.logs.exp().sum(dim=1) >= 1 - REST - 1e-5).all()
    logits = scores + _scores(examples=6)[3:]
    true, value = disagreement(logits, scores), predictions.disagreement(0, logits)
    torch.testing.assert_close(value, true, rtol=1e-3, atol=0)
    assert value < true + 1e-5


def test_of_a_flat_prediction_all_words_are_kept_in_fp16() -> None:
    scores = _scores(scale=8)
    predictions, _ = _ask(Batch({"scores": scores}), temperature=8)
    assert predictions.classes is None
    assert predictions.logs.dtype is torch.float16
    logits = (scores + _scores(examples=6)[3:]) / 8
    expected = disagreement(logits, scores / 8)
    torch.testing.assert_close(predictions.disagreement(0, logits), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("words", [5, _WORDS], ids=["few classes", "many"])
def test_an_expert_that_predicts_the_same_for_all_is_found(words: int) -> None:
    scores = 8 * _scores(examples=FEW, words=words)
    scores[:, 2] += 100
    assert _ask(Batch({"scores": scores}))[0].are_alike()
    assert not _ask(Batch({"scores": scores[1:]}))[0].are_alike()
    scores[3, 1] += 200
    assert not _ask(Batch({"scores": scores}))[0].are_alike()


def test_the_base_predicts_the_tasks_that_it_teaches() -> None:
    pool, tasks, batches = tiny_pool("mlp"), TinyTasks(), Batches(8, 1, examples=16)
    taught = [tasks["a"], tasks["b"]]
    asked = ask_teachers(pool, taught, batches, 2, by_base=["b"], **_CPU)
    assert pool.base is not None
    for task, source in zip(taught, (pool.expert_of("a"), pool.base), strict=True):
        predictions, model = asked[task.name], pool.build(source)
        expected = task.logits(model, batches.of(task, 1)).log_softmax(1)
        torch.testing.assert_close(predictions.logs[predictions.rows[1]], expected.detach())


def test_without_a_base_no_expert_teaches_in_its_place() -> None:
    task = TinyTasks()["a"]
    with pytest.raises(RecipeError, match="the base teaches task 'a', and the pool has no base"):
        ask_teachers(tiny_pool(base=False), [task], Batches(2, 0), 1, by_base=["a"], **_CPU)
