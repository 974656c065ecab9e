"""Gradient checkpointing: the same values and gradients, with less in memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from fusion_adapting import Batches, Passes, checkpoint_layers
from fusion_testing import TinyTasks

SIZES = {
    LlamaForCausalLM: LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
    ),
    GPT2LMHeadModel: GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2),
    BertModel: BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
    ),
    T5ForConditionalGeneration: T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2
    ),
}
TASKS = TinyTasks("ab")


class Block(nn.Module):
    """A residual layer, with a list of its own inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(48, 48), nn.Linear(48, 48)])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        first, second = self.inner
        return inputs + torch.tanh(second(torch.tanh(first(inputs))))


class Deep(nn.Module):
    """Four blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(4)])
        self.head = nn.Linear(48, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        values = inputs.flatten(1)
        for block in self.blocks:
            values = block(values)
        scores: torch.Tensor = self.head(values)
        return scores


def make_deep() -> Deep:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Deep().eval()


def gradients(model: nn.Module, tasks: Any = TASKS, **options: Any) -> list[torch.Tensor | None]:
    passes = Passes(model, tasks, Batches(8, 1), torch.device("cpu"), **options)
    passes.backward(0, lambda _task, _step, logits: logits.square().mean())
    return [parameter.grad for parameter in model.parameters()]


def saved_bytes(model: nn.Module) -> int:
    saved: dict[int, int] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        scores = model(torch.ones(64, 3, 4, 4))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert scores.requires_grad
    return sum(size for address, size in saved.items() if address not in weights)


def test_gradients_are_the_same_and_only_the_inputs_of_layers_are_kept() -> None:
    plain, checkpointed = make_deep(), make_deep()
    assert checkpoint_layers(checkpointed) == 4, "and not the lists inside"
    for before, after in zip(gradients(plain), gradients(checkpointed), strict=True):
        assert torch.equal(before, after)
    # A block saves its input and two hidden activations, and then one input alone.
    assert saved_bytes(checkpointed) < 0.5 * saved_bytes(plain)


def test_a_layer_runs_again_with_the_parameters_of_its_task() -> None:
    def gradient_of_task(*, checkpoints: bool) -> torch.Tensor | None:
        model = make_deep()
        matrix = nn.Parameter(model.blocks[1].inner[0].weight.detach() * 2)
        if checkpoints:
            checkpoint_layers(model)
        gradients(model, task_parameters={"a": {"blocks.1.inner.0.weight": matrix}})
        return matrix.grad

    plain, checkpointed = gradient_of_task(checkpoints=False), gradient_of_task(checkpoints=True)
    assert plain is not None
    assert torch.equal(plain, checkpointed)


@pytest.mark.parametrize("kind", SIZES, ids=lambda kind: kind.__name__)
def test_models_of_transformers_with_their_caches(kind: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        plain = kind(copy.deepcopy(SIZES[kind])).eval()
    checkpointed = copy.deepcopy(plain)
    assert checkpoint_layers(checkpointed) == (6 if kind is T5ForConditionalGeneration else 3)
    words = torch.arange(24).reshape(2, 12)
    mask = torch.ones_like(words)
    mask[0, 8:] = 0
    more = {"decoder_input_ids": words} if kind is T5ForConditionalGeneration else {}
    outputs = []
    for model in (plain, checkpointed):
        outputs.append(model(input_ids=words, attention_mask=mask, **more)[0])
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    # The layers of T5 share a table of positions, and add their gradients to it in another order.
    before, after = ([w.grad for w in model.parameters()] for model in (plain, checkpointed))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_a_model_without_repeated_layers_is_left_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Tanh())
    assert checkpoint_layers(model) == 0
    assert "forward" not in vars(model[1])
