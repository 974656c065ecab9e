"""Routers from prompts: against hidden states that transformers returns, and in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from dense_models import make_model, mix, word_pool
from torch import Tensor

if TYPE_CHECKING:
    from fusion_core import WeightSource

PROMPTS = {"a": ["one two three", "three one"], "b": ["red green", "blue blue red green"]}
NEGATIVE = {"a": ["cat dog"]}


def routers(mixture: WeightSource) -> Tensor:
    """Return the routers of a Mixtral, of shape (layers, experts, hidden)."""
    names = [name for name in mixture.infos if name.endswith(".gate.weight")]
    return torch.stack([mixture.tensor(name) for name in names])


def unit(directions: Tensor) -> Tensor:
    return torch.nn.functional.normalize(directions, dim=-1)


def states_of(pool: Any, text: str, *, at_blocks: bool) -> Tensor:
    """Return the base's states before each layer or block: (layers, tokens, hidden)."""
    (tokens,) = pool.tokenize([text])
    model = make_model("llama", 0)
    blocks: list[Tensor] = []
    for layer in model.model.layers:
        layer.post_attention_layernorm.register_forward_hook(
            lambda _module, _args, output: blocks.append(output[0])
        )
    with torch.no_grad():
        output = model(torch.tensor([tokens]), output_hidden_states=True)
    return torch.stack(blocks if at_blocks else [state[0] for state in output.hidden_states[:-1]])


def mean_states(pool: Any, gate: str, texts: list[str]) -> Tensor:
    """Return the direction of texts, of shape (layers, hidden)."""
    if gate == "embeddings":
        rows = [
            make_model("llama", 0).model.embed_tokens(torch.tensor(row))
            for row in pool.tokenize(texts)
        ]
        return unit(torch.cat(rows).sum(0)).expand(2, -1)
    states = [states_of(pool, text, at_blocks=gate == "hidden") for text in texts]
    of_texts = [s[:, 1:].mean(1) if gate == "hidden" else s[:, -1] for s in states]
    return torch.stack(of_texts).mean(0)


@pytest.mark.parametrize("gate", ["hidden", "last-hidden", "embeddings"])
def test_a_row_is_the_direction_of_the_prompts_without_that_of_negative_ones(gate: str) -> None:
    pool = word_pool()
    options = {"prompts": PROMPTS, "negative_prompts": NEGATIVE}
    rows = routers(mix(pool, gate=gate, **options).weights)
    a = mean_states(pool, gate, PROMPTS["a"]) - mean_states(pool, gate, NEGATIVE["a"])
    expected = torch.stack([unit(a), unit(mean_states(pool, gate, PROMPTS["b"]))], 1)
    torch.testing.assert_close(rows, expected.detach(), rtol=0, atol=1e-6)


def test_a_router_scores_a_prompt_highest_for_its_own_expert() -> None:
    """The mean score of a text's tokens is largest in the row that is their mean direction."""
    pool = word_pool()
    prompts = {"a": ["one two three"], "b": ["red green blue"]}
    rows = routers(mix(pool, prompts=prompts).weights)
    for number, texts in enumerate(prompts.values()):
        states = states_of(pool, texts[0], at_blocks=True)[:, 1:]
        scores = (states @ rows.mT).mean(1)  # (layers, experts)
        assert (scores.argmax(1) == number).all()


def test_a_shared_expert_with_prompts_has_a_gate_of_its_own() -> None:
    pool = word_pool(experts=(1, 2, 3))
    prompts = {**PROMPTS, "c": ["dog dog cat"]}
    mixture = mix(pool, prompts=prompts, shared_expert="c").weights
    gates = torch.cat(
        [mixture.tensor(f"model.layers.{n}.mlp.shared_expert_gate.weight") for n in range(2)]
    )
    expected = unit(mean_states(pool, "hidden", prompts["c"])).detach()
    torch.testing.assert_close(gates, expected, rtol=0, atol=1e-6)
