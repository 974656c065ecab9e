"""The merges of the table: the framework's methods, and a separate RegMean, which needs texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from model import Encoder, batch, load, rounded
from tasks import exchange
from torch import Tensor, nn

from fusion_core import merge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from model import State
    from tasks import Task
    from transformers import LlamaForCausalLM

SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
DEFAULTS: dict[str, Any] = {
    "simple average": "simple-average",
    **{f"task arithmetic {s:g}": {"name": "task-arithmetic", "scale": s} for s in SCALES},
    "ties": "ties",
    "tsv-m": "tsv-m",
    "iso-c": "iso-c",
}


def merged(
    model: LlamaForCausalLM,
    encoder: Encoder,
    base: State,
    experts: Mapping[str, State],
    tasks: Sequence[Task],
) -> Iterator[tuple[str, State]]:
    """Return all merges of the table by name, rounded to the written dtype."""
    models = {"base": base, "models": dict(experts)}
    for name, algorithm in DEFAULTS.items():
        weights = merge(algorithm, models).state_dict()
        yield name, rounded(weights)
    yield "regmean", rounded(regmean(model, encoder, experts, tasks))


@torch.no_grad()
def regmean(
    model: LlamaForCausalLM,
    encoder: Encoder,
    experts: Mapping[str, State],
    tasks: Sequence[Task],
    *,
    lines: int = 256,
    shrink: float = 0.9,
) -> State:
    """Jin et al., arXiv:2212.09849: least squares per linear layer, the rest averaged."""
    names = next(iter(experts.values()))
    merged = {name: torch.stack([e[name] for e in experts.values()]).mean(0) for name in names}
    grams: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}
    for task in tasks:
        load(model, experts[task.name])
        for name, gram in _grams(model, encoder, task, lines).items():
            shrunk = shrink * gram + (1 - shrink) * torch.diag(gram.diag())
            grams[name] = grams.get(name, 0) + shrunk
            products[name] = products.get(name, 0) + shrunk @ experts[task.name][name].T
    for name, gram in grams.items():
        ridge = 1e-6 * gram.diag().mean() * torch.eye(len(gram))
        merged[name] = torch.linalg.solve(gram + ridge, products[name]).T.contiguous()
    return merged


def _grams(model: LlamaForCausalLM, encoder: Encoder, task: Task, lines: int) -> dict[str, Tensor]:
    """Return the mean outer product of each linear layer's inputs, except the tied head's."""
    grams: dict[str, Tensor] = {}
    real: list[Tensor] = []

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0][real[0]]
            grams[name] = rows.T @ rows / len(rows)

        return record

    hooks = [
        module.register_forward_pre_hook(recorder(f"model.{name}.weight"))
        for name, module in model.model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    items = [
        encoder.text(line["text"]) if "text" in line else encoder.exchange(*exchange(line))
        for line in task.train[:lines]
    ]
    ids, _ = batch(items, encoder.words.pad_token_id)
    real.append(ids != encoder.words.pad_token_id)
    model.model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return grams
