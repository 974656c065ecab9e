"""Moments of layers' inputs equal a loop over examples that were never padded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from padded_words import (
    SAMPLES,
    SIZE,
    WordModel,
    WordTask,
    WordTasks,
    examples,
    is_hooked,
    word_pool,
)
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from fusion_adapting import Batches, Moments, compute_moments, moments
from fusion_core import Batch, Split
from fusion_core.errors import FusionError
from fusion_testing import TinyTasks, tiny_pool

OPTIONS: dict[str, Any] = {"samples": SAMPLES, "batch_size": SIZE}
#: Of a tensor's largest entry. A layer's input is made by at most five products of six terms, and
#: fp32 rounds each term by 6e-8: 1.8e-6 of an input, twice as much of the product of two, and as
#: much again for the sum over all inputs.
FP32 = 1e-5


def collect_by_hand(model: WordModel, texts: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    """Return every input vector of each layer, in float64."""
    model = model.double()
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in ("mix", "turn", "up", "output")}
    for text in texts:
        states = []
        for word in text:
            first = model.embedding.weight[word]
            second = (model.mix.weight @ first + model.mix.bias).tanh()
            third = (model.mix.weight @ second + model.mix.bias).tanh()
            fourth = (third @ model.turn.weight + model.turn.bias).tanh()
            states.append(model.up.weight @ fourth + model.up.bias)
            inputs["mix"] += [first, second]
            inputs["turn"].append(third)
            inputs["up"].append(fourth)
        pooled = torch.stack(states).mean(0)
        inputs["mix"].append(pooled)  # the pooler's weight is the same
        inputs["output"].append((model.pooler.weight @ pooled + model.pooler.bias).tanh())
    return inputs


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, FP32), (torch.bfloat16, 0.05)]
)
@pytest.mark.parametrize("seed", range(3))
def test_moments_equal_sums_of_outer_products_of_unpadded_inputs(
    seed: int, dtype: torch.dtype, tolerance: float
) -> None:
    pool, tasks = word_pool(seed, dtype), WordTasks()
    by_expert = dict(moments(pool, tasks, seed=seed, **OPTIONS))
    assert list(by_expert) == ["a", "b", "c"]
    for expert, layers in by_expert.items():
        inputs = collect_by_hand(pool.build(pool.experts[expert]), examples(tasks[expert], seed))
        named = {"pooler": "mix", "embedding": "output"}
        assert layers.keys() == {f"{name}.weight" for name in [*inputs, *named]}, "and no idle one"
        for tensor, result in layers.items():
            name = tensor.removesuffix(".weight")
            rows = torch.stack(inputs[named.get(name, name)]).detach()
            expected = sum(torch.outer(row, row) for row in rows)
            assert result.total.dtype is (
                torch.float64 if dtype is torch.float64 else torch.float32
            )
            assert (result.total - expected).abs().max() <= tolerance * expected.abs().max()
            assert result.count == len(rows)
            torch.testing.assert_close(result.mean, result.total / len(rows))
            assert result.dim == (0 if name == "turn" else 1)
        assert layers["mix.weight"] is layers["pooler.weight"]


def test_moments_cover_the_input_dimension_of_the_weight() -> None:
    pool = word_pool(0, torch.float64)
    (_, layers), *_ = moments(pool, WordTasks(), **OPTIONS)
    for name in ("turn.weight", "up.weight"):
        weight = pool.experts["a"].tensor(name)
        assert len(layers[name].total) == weight.shape[layers[name].dim]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_padding_changes_nothing_for_models_of_transformers(kind: str) -> None:
    torch.manual_seed(0)
    small = {"vocab_size": 12, "max_position_embeddings": 8, "num_hidden_layers": 2}
    model: nn.Module = {
        "bert": lambda: BertModel(
            BertConfig(**small, hidden_size=8, num_attention_heads=2, intermediate_size=16)
        ),
        "gpt2": lambda: GPT2Model(GPT2Config(**small, n_embd=8, n_head=2, n_positions=8)),
    }[kind]().eval()

    class Task(WordTask):
        def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            return model(**batch.tensors).last_hidden_state[:, 0]

    task = Task("a")
    batches = [*Batches(SIZE, 0).first(task, SAMPLES)]
    alone = [Batch({"input_ids": text[None]}) for text in examples(task, 0)]
    parameters = dict(model.named_parameters())
    together, apart = (compute_moments(model, parameters, task, data) for data in (batches, alone))
    assert together.keys() == apart.keys()
    assert len(together) == (13 if kind == "bert" else 8), "six or four per layer, and a pooler"
    for name, result in together.items():
        assert result.count == apart[name].count
        torch.testing.assert_close(result.total, apart[name].total, rtol=1e-4, atol=1e-4)


def test_an_encoder_of_torch_takes_no_fast_path_around_its_layers() -> None:
    pool, tasks = tiny_pool("transformer", experts=1), TinyTasks()
    ((_, layers),) = moments(pool, tasks, **OPTIONS)
    feed_forward = {f"encoder.layers.0.linear{n}.weight" for n in (1, 2)}
    assert layers.keys() == {*feed_forward, "embedding.weight", "output.weight"}
    assert layers["encoder.layers.0.linear1.weight"].count == SAMPLES * 6


def test_images_are_inputs_without_padding() -> None:
    pool, task = tiny_pool("mlp", experts=1, dtype=torch.float64), TinyTasks()["a"]
    ((_, layers),) = moments(pool, TinyTasks(), seed=5, **OPTIONS)
    images = [
        task.batch(step, size=SIZE, split=Split.UNLABELED, seed=5).inputs for step in range(3)
    ]
    rows = torch.cat(images).flatten(1)[:SAMPLES].double()
    torch.testing.assert_close(layers["1.weight"].total, rows.T @ rows)


def test_a_batch_is_no_larger_than_the_samples() -> None:
    ((_, layers),) = moments(tiny_pool("mlp", experts=1), TinyTasks(), samples=3)
    assert layers["1.weight"].count == 3


class Bent(WordModel):
    """A linear layer over positions in a layout that no mask describes."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.mix(self.bent(self.embedding(input_ids))).reshape(len(input_ids), -1)[:, :3]

    def bent(self, states: torch.Tensor) -> torch.Tensor:
        return states.flatten(0, 1)


def test_flattened_positions_are_masked_too() -> None:
    model, task = Bent().eval(), WordTask("a")
    result = compute_moments(
        model, dict(model.named_parameters()), task, Batches(SIZE, 0).first(task, SAMPLES)
    )
    assert result["mix.weight"].count == sum(map(len, examples(task, 0)))


def test_a_mask_that_does_not_fit_the_inputs_is_refused_with_the_layers_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Bent, "bent", lambda _, states: states.transpose(0, 1))
    model, task = Bent().eval(), WordTask("a")
    parameters = dict(model.named_parameters())
    with pytest.raises(
        FusionError, match=r"layer of 'mix.weight': its inputs .* mask has shape"
    ) as caught:
        compute_moments(model, parameters, task, Batches(SIZE, 0).first(task, SIZE))
    assert str(caught.value.hint).endswith("algorithm.skip=mix.weight")
    others = {name: value for name, value in parameters.items() if name != "mix.weight"}
    assert not compute_moments(model, others, task, Batches(SIZE, 0).first(task, SIZE))


def test_hooks_are_removed_after_an_error() -> None:
    class Failing(WordTask):
        def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            super().logits(model, batch)
            assert is_hooked(model)
            raise OSError("the data is gone")

    model, task = WordModel().eval(), Failing("a")
    with pytest.raises(OSError, match="the data is gone"):
        compute_moments(model, dict(model.named_parameters()), task, Batches(4, 0).first(task, 4))
    assert not is_hooked(model)


def test_moments_of_no_inputs_are_zeros() -> None:
    assert torch.equal(Moments(torch.zeros(2, 2), 1).mean, torch.zeros(2, 2))
