"""Tiny mixtures of transformers whose experts are packed, and the same with separate layers."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
)

from fusion_core import AdaptiveTask, Batch, ComponentConfig, RunOptions, TaskPool, run_fusion
from fusion_core.weights import Columns, Matrices, Rows, Stacked
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fusion_core import MetricValues, Split

    State = dict[str, Tensor]

HIDDEN, INNER, EXPERTS, WORDS = 8, 4, 4, 12
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "num_local_experts": EXPERTS,
    "vocab_size": WORDS,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, tuple[type[Any], Any]] = {
    "mixtral": (MixtralForCausalLM, MixtralConfig(**SIZES, num_experts_per_tok=2)),
    "gpt_oss": (
        GptOssForCausalLM,
        GptOssConfig(**SIZES, num_experts_per_tok=2, layer_types=["full_attention"] * 2),
    ),
    "llama4": (
        Llama4ForCausalLM,
        Llama4TextConfig(**SIZES, intermediate_size_mlp=INNER, num_experts_per_tok=1),
    ),
}
TRANSPOSED = {"gpt_oss", "llama4"}


class SeparateExperts(nn.Module):
    """The experts of a packed module, with one linear layer per expert and projection."""

    def __init__(self, packed: Any, kind: str) -> None:
        super().__init__()
        self.kind, self.packed = kind, [packed]  # in a list, so as not to be a module of this one
        has_bias = hasattr(packed, "down_proj_bias")
        for index in range(EXPERTS):
            expert = nn.Module()
            for part in ("gate_proj", "up_proj"):
                expert.add_module(part, nn.Linear(HIDDEN, INNER, bias=has_bias))
            expert.add_module("down_proj", nn.Linear(INNER, HIDDEN, bias=has_bias))
            self.add_module(str(index), expert)

    def forward(self, states: Tensor, index: Any = None, weights: Any = None) -> Tensor:
        if self.kind == "llama4":
            parts = states.view(EXPERTS, -1, HIDDEN)
            outputs = torch.zeros_like(parts)
            for number, rows in enumerate(parts):
                routed = rows.any(1)
                if routed.any():
                    outputs[number, routed] = self.expert(number, rows[routed])
            return outputs.view(-1, HIDDEN)
        outputs = torch.zeros_like(states)
        for number in range(EXPERTS):
            position, choice = torch.where(index == number)
            if len(position):
                answer = self.expert(number, states[position])
                outputs.index_add_(0, position, answer * weights[position, choice, None])
        return outputs

    def expert(self, number: int, rows: Tensor) -> Tensor:
        expert: Any = self.get_submodule(str(number))
        gate, up = expert.gate_proj(rows), expert.up_proj(rows)
        if self.kind == "gpt_oss":
            both = torch.stack([gate, up], -1).flatten(1)
            return expert.down_proj(self.packed[0]._apply_gate(both))  # noqa: SLF001
        return expert.down_proj(self.packed[0].act_fn(gate) * up)


class PackedPool(CheckpointsPool):
    """A pool that knows where gate and up are."""

    kind = "mixtral"

    def matrices(self, name: str, shape: tuple[int, ...]) -> Matrices:
        prefix, _, projection = name.rpartition(".experts.")
        projection, is_bias = projection.removesuffix("_bias"), projection.endswith("_bias")
        if not prefix:
            return super().matrices(name, shape)
        template = f"{prefix}.experts.{{index}}."
        rows = [Rows(HIDDEN)]
        if projection == "gate_up_proj":
            rows = [Rows(gate_proj=INNER, up_proj=INNER)]
            if self.kind == "gpt_oss":
                rows = [Rows(INNER), Rows(gate_proj=1, up_proj=1)]
        part = "{part}" if projection == "gate_up_proj" else projection
        columns = [] if is_bias else [Columns(INNER if projection == "down_proj" else HIDDEN)]
        axes = [*columns, *rows] if self.kind in TRANSPOSED else [*rows, *columns]
        name = f"{template}{part}.{'bias' if is_bias else 'weight'}"
        return Matrices((Stacked(EXPERTS), *axes), name)


class Texts(AdaptiveTask):
    """Classify texts by the scores of three words after the last; half of the texts may be short.

    The padding of short texts comes last, and contains words.
    """

    def __init__(self, name: str, *, is_padded: bool = False) -> None:
        self.name, self._is_padded = name, is_padded

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        draw = torch.Generator().manual_seed(1000 * seed + 10 * step + ord(self.name))
        words = torch.randint(WORDS, (size, 5), generator=draw)
        if not self._is_padded:
            return Batch({"input_ids": words})
        lengths = torch.where(torch.arange(size) % 2 == 0, 3, 5)
        mask = torch.arange(5) < lengths[:, None]
        return Batch({"input_ids": words, "attention_mask": mask.long()})

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        scores = model(**batch.tensors).logits[..., :3]
        mask = batch.tensors.get("attention_mask", torch.ones(scores.shape[:2]))
        return scores[torch.arange(len(scores)), mask.sum(1).long() - 1]

    def evaluate(self, model: nn.Module) -> MetricValues:
        raise NotImplementedError


class AllTexts(TaskPool[ComponentConfig]):
    """One task per expert."""

    names = ("a", "b", "c")

    def __init__(self, task: Callable[[str], AdaptiveTask] = Texts) -> None:
        super().__init__(ComponentConfig())
        self._task = task

    def __getitem__(self, name: str) -> AdaptiveTask:
        return self._task(name)


def merge(algorithm: Any, pool: Any, tasks: Any = None, **output: Any) -> Any:
    """Return the result of a run."""
    return run_fusion(
        algorithm=algorithm,
        model_pool=pool,
        task_pool=tasks or AllTexts(),
        options=RunOptions(evaluate=False),
        **output,
    )


def make_models(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Return `base` and three experts, each with random differences in all weights."""
    model_class, config = MODELS[kind]
    models: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = model_class(copy.deepcopy(config)).eval()
        for name in ("base", "a", "b", "c"):
            models[name] = copy.deepcopy(base)
            for parameter in models[name].parameters():
                parameter.data += 0.3 * torch.randn_like(parameter)
            models[name].to(dtype)
    return models


def packed_pool(kind: str, models: dict[str, Any]) -> PackedPool:
    base, experts = models["base"], {name: models[name] for name in "abc"}
    pool = type("Pool", (PackedPool,), {"kind": kind})
    return pool(CheckpointsConfig(base=base, models=experts))


def separate_pool(pool: PackedPool, models: dict[str, Any]) -> CheckpointsPool:
    """Return the same models with separate experts."""
    separate: dict[str, Any] = {}
    for name, source in pool.by_name.items():
        separate[name] = copy.deepcopy(models[name])
        for module in [*separate[name].modules()]:
            if hasattr(module, "experts"):
                module.experts = SeparateExperts(module.experts, pool.kind).double()
        state = pool.layout.unpack(source).state_dict()
        separate[name].load_state_dict(state)
        separate[name].to(next(models[name].parameters()).dtype)
    base, experts = separate["base"], {name: separate[name] for name in "abc"}
    return CheckpointsPool(CheckpointsConfig(base=base, models=experts))


def packed_names(state: State) -> Iterator[str]:
    return (name for name in state if ".experts." in name and "bias" not in name)
