"""Inputs of layers, recorded call by call; moments and padding: `test_moments.py`."""

from __future__ import annotations

import pytest
import torch
from padded_words import SAMPLES, SIZE, WordTask, examples, word_pool
from torch import nn

from fusion_adapting import Batches, LiveMerge, build_live, compute_moments, observe_inputs
from fusion_core import Batch, RunContext, Split
from fusion_core.errors import FusionError
from fusion_core.weights import Linear, StateDictSource
from fusion_testing import TinyTasks, tiny_pool


def test_inputs_are_recorded_in_the_order_of_calls() -> None:
    pool, task = tiny_pool("mlp"), TinyTasks()["a"]
    model = build_live(pool, pool.experts["a"], "cpu")
    batch = task.batch(0, size=5, split=Split.UNLABELED, seed=0)
    layers = {layer: name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    calls = []
    observe_inputs(model, layers, task, batch, lambda *call: calls.append(call))
    (first, images), (last, states) = calls
    assert [layers[first], layers[last]] == ["1", "3"]
    assert torch.equal(images, batch.inputs.flatten(1))
    torch.testing.assert_close(states, first(images).tanh())
    assert not states.requires_grad


@pytest.mark.parametrize(
    ("base", "expert", "live"),
    [
        (torch.float64, torch.float64, torch.float64),
        (torch.float32, torch.float32, torch.float32),
        (torch.float32, torch.float64, torch.float32),  # as the differences of some adapters are
        (torch.bfloat16, torch.bfloat16, torch.float32),
    ],
)
def test_the_base_decides_the_precision_of_live_models(
    base: torch.dtype, expert: torch.dtype, live: torch.dtype
) -> None:
    pool = tiny_pool("mlp", dtype=base)
    weights = {name: value.to(expert) for name, value in pool.experts["a"].state_dict().items()}
    pool = pool.with_sources({"a": StateDictSource(weights)})
    merged = RunContext().merge_matrices(pool, Linear((0.3,) * len(pool.experts)))
    merge = LiveMerge(pool, merged, torch.device("cpu"))
    models = (build_live(pool, pool.experts["a"], "cpu"), merge.model)
    assert {value.dtype for model in models for value in model.parameters()} == {live}
    assert {leaf.vectors.rows.dtype for leaf in merge.leaves} == {live}


class Pairs(WordTask):
    """Two texts per example, each in a call with its own mask; the second is the first, cut."""

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        words, mask = batch.tensors["input_ids"], batch.tensors["attention_mask"]
        return model(words, mask) - model(words[:, :2], attention_mask=mask[:, :2])


class OneByOne(WordTask):
    """One call per example, padded as the batch is."""

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        parts = (batch.part(n, n + 1) for n in range(len(batch)))
        return torch.cat([model(**part.tensors) for part in parts])


@pytest.mark.parametrize("kind", [Pairs, OneByOne])
def test_each_call_of_a_model_uses_its_own_mask(kind: type[WordTask]) -> None:
    pool, task = word_pool(0, torch.float64), kind("a")
    model = build_live(pool, pool.experts["a"], "cpu")
    batches = [*Batches(SIZE, 0).first(task, SAMPLES)]
    alone = [
        Batch({"input_ids": t[None], "attention_mask": torch.ones(1, len(t))})
        for t in examples(task, 0)
    ]
    parameters = dict(model.named_parameters())
    together, apart = (compute_moments(model, parameters, task, data) for data in (batches, alone))
    for name, result in together.items():
        assert result.count == apart[name].count
        torch.testing.assert_close(result.total, apart[name].total)


class Plain(WordTask):
    """All outputs of the model."""

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        scores: torch.Tensor = model(**batch.tensors)
        return scores


class Heads(nn.Module):
    """A layer that reads one input per head, perhaps heads before positions, as in Gemma 3."""

    def __init__(self, *, heads_first: bool) -> None:
        super().__init__()
        self.layer, self.heads_first = nn.Linear(2, 2), heads_first

    def forward(self, values: torch.Tensor, *, attention_mask: torch.Tensor) -> torch.Tensor:
        del attention_mask
        heads = values.view(*values.shape[:2], -1, 2)
        scores: torch.Tensor = self.layer(heads.transpose(1, 2) if self.heads_first else heads)
        return scores


@pytest.mark.parametrize("heads", [2, 3])  # three as there are positions
@pytest.mark.parametrize("heads_first", [False, True])
def test_heads_may_come_before_positions(heads: int, *, heads_first: bool) -> None:
    model, values = Heads(heads_first=heads_first), torch.randn(2, 3, 2 * heads)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    batch = Batch({"values": values, "attention_mask": mask})
    seen: list[torch.Tensor] = []
    layers = {model.layer: "norm"}
    observe_inputs(model, layers, Plain("a"), batch, lambda _, inputs: seen.append(inputs))
    assert torch.equal(seen[0], values[mask.bool()].view(-1, 2))


class Predicting(nn.Module):
    """A layer that reads the marked positions of all examples, as the head of a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(
        self, values: torch.Tensor, *, attention_mask: torch.Tensor, predicted: torch.Tensor
    ) -> torch.Tensor:
        del attention_mask
        scores: torch.Tensor = self.layer(values[predicted])
        return scores


def test_a_layer_may_read_the_predicted_positions_alone() -> None:
    model, values = Predicting(), torch.randn(2, 3, 2)
    predicted = torch.tensor([[False, True, True], [True, True, False]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    batch = Batch({"values": values, "attention_mask": mask, "predicted": predicted})
    seen: list[torch.Tensor] = []
    layers = {model.layer: "head"}
    observe_inputs(model, layers, Plain("a"), batch, lambda _, inputs: seen.append(inputs))
    assert torch.equal(seen[0], values[predicted])


def test_a_task_that_caches_its_scores_is_refused_by_name() -> None:
    class Caching(WordTask):
        cached: torch.Tensor | None = None

        def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            if self.cached is None:
                self.cached = super().logits(model, batch)
            return self.cached

    pool, task = word_pool(0, torch.float32), Caching("a")
    model = build_live(pool, pool.experts["a"], "cpu")
    batches = Batches(SIZE, 0).first(task, 2 * SIZE)
    with pytest.raises(FusionError, match="task 'a' computed its scores without calling the model"):
        compute_moments(model, dict(model.named_parameters()), task, batches)
