"""The rows of routers: which direction of hidden states belongs to which expert."""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusion_adapting import build_live
from fusion_core.weights import read_range
from fusion_moe.blueprint import EMBEDDINGS
from fusion_moe.prompts import tokenize_prompts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core import ModelPool, RunContext
    from fusion_moe.blueprint import Blueprint
    from fusion_moe.config import MoeConfig
    from fusion_moe.prompts import Tokens

#: The least length that a direction is divided by, as in mergekit.
_LEAST_LENGTH = 1e-8


def compute_gates(
    config: MoeConfig,
    blueprint: Blueprint,
    pool: ModelPool[Any],
    context: RunContext,
    *,
    start_token: int | None,
) -> Mapping[str, Tensor]:
    """Return the row of each expert in every layer's router, of shape (layers, hidden), in fp32.

    A shared expert has one only if it has prompts. `start_token` begins each text, and belongs to
    no expert.
    """
    if config.gate == "random":
        return {name: _draw(name, blueprint, context.seed) for name in blueprint.experts}
    prompts = tokenize_prompts(config, pool)
    if config.gate == "embeddings":
        embed = _Embedding(pool, blueprint)
        return {
            name: _unit(embed(texts.positive) - embed(texts.negative))
            if texts.negative
            else embed(texts.positive)
            for name, texts in prompts.items()
        }
    observer = _Observer(
        config, blueprint, build_live(pool, pool.reference, context.device), start_token
    )
    gates = {}
    with context.progress.track("prompts", total=len(prompts)) as advance:
        for name, texts in prompts.items():
            direction = observer(texts.positive)
            if texts.negative:
                direction = direction - observer(texts.negative)
            gates[name] = _unit(direction)
            advance(1, note=name)
    return gates


def _unit(directions: Tensor) -> Tensor:
    """Return vectors of length 1 in the last dimension."""
    return nn.functional.normalize(directions, dim=-1, eps=_LEAST_LENGTH)


def _draw(expert: str, blueprint: Blueprint, seed: int) -> Tensor:
    """Return standard normal numbers that depend on the seed and the expert's name only."""
    digest = hashlib.sha256(f"{seed}\0moe\0{expert}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(len(blueprint.layers), blueprint.hidden, generator=generator)


class _Embedding:
    """Texts as the direction of their tokens' embeddings, the same in all layers."""

    def __init__(self, pool: ModelPool[Any], blueprint: Blueprint) -> None:
        self._base = pool.reference
        self._layers, self._width = len(blueprint.layers), blueprint.hidden

    def __call__(self, texts: Tokens) -> Tensor:
        counts = Counter(token for text in texts for token in text)
        total = torch.zeros(self._width)
        for token, count in sorted(counts.items()):
            start = token * self._width
            row = read_range(self._base, EMBEDDINGS, start, start + self._width)
            total += count * row.float()
        return _unit(total).expand(self._layers, -1)


class _Observer:
    """Texts as mean hidden states of the live base, layer by layer."""

    def __init__(
        self, config: MoeConfig, blueprint: Blueprint, model: nn.Module, start_token: int | None
    ) -> None:
        self._model, self._start = model, start_token
        self._is_last = config.gate == "last-hidden"
        inner = "" if self._is_last else ".mlp"
        names = [f"{prefix.removesuffix('.')}{inner}" for prefix in blueprint.layers]
        self._modules = [model.get_submodule(name) for name in names]

    def __call__(self, texts: Tokens) -> Tensor:
        """Return the mean over texts, of shape (layers, hidden)."""
        return torch.stack([self._observe(text) for text in texts]).mean(0)

    @torch.no_grad()
    def _observe(self, text: Sequence[int]) -> Tensor:
        states: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states[module] = (args or tuple(kwargs.values()))[0][0].float().cpu()

        device = next(self._model.parameters()).device
        with ExitStack() as hooks:
            for module in self._modules:
                handle = module.register_forward_pre_hook(keep, with_kwargs=True)
                hooks.callback(handle.remove)
            self._model(
                input_ids=torch.tensor([text], device=device), use_cache=False, logits_to_keep=1
            )
        summarize = self._last if self._is_last else self._mean
        return torch.stack([summarize(states[module], text) for module in self._modules])

    @staticmethod
    def _last(states: Tensor, _text: Sequence[int]) -> Tensor:
        return states[-1]

    def _mean(self, states: Tensor, text: Sequence[int]) -> Tensor:
        """Return the mean over tokens, without the one that begins every text."""
        has_start = text[0] == self._start and len(text) > 1
        return states[has_start:].mean(0)
