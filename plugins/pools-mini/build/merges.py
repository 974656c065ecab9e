"""Dense reference versions of the static merging methods, deliberately plain and slow.

They measure the benchmark independently of the framework, so that neither is tuned to the other.
All work on dicts of float32 tensors. A task vector is an expert minus the base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from model import State, pixels
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tasks import Task
    from transformers import CLIPModel


def add(base: State, vector: State, scale: float = 1.0) -> State:
    """Return ``base + scale * vector``."""
    return {name: base[name] + scale * vector[name] for name in base}


def subtract(expert: State, base: State) -> State:
    """Return the task vector of an expert."""
    return {name: expert[name] - base[name] for name in base}


def _sum(vectors: Sequence[State]) -> State:
    return {name: torch.stack([vector[name] for vector in vectors]).sum(0) for name in vectors[0]}


def average(base: State, vectors: Sequence[State]) -> State:
    """Return the mean of the experts (Wortsman et al., arXiv:2203.05482, uniform soup)."""
    return add(base, _sum(vectors), 1 / len(vectors))


def task_arithmetic(base: State, vectors: Sequence[State], scale: float = 0.3) -> State:
    """Ilharco et al., arXiv:2212.04089."""
    return add(base, _sum(vectors), scale)


def ties(
    base: State,
    vectors: Sequence[State],
    *,
    density: float = 0.2,
    scale: float = 1.0,
    combine: str = "mean",
) -> State:
    """Yadav et al., arXiv:2306.01708: trim, elect signs, merge those that agree."""
    trimmed = torch.stack([_trim(_flat(vector), density) for vector in vectors])
    elected = trimmed.sum(0).sign()
    majority = elected.sum().sign()
    elected = torch.where(elected == 0, torch.where(majority == 0, 1.0, majority), elected)
    agreeing = (trimmed.sign() == elected) & (trimmed != 0)
    merged = (trimmed * agreeing).sum(0)
    if combine == "mean":
        merged = merged / agreeing.sum(0).clamp(min=1)
    return add(base, _unflat(merged, base), scale)


def _trim(flat: Tensor, density: float) -> Tensor:
    """Zero all but the largest ``density`` of entries; entries equal to the threshold stay."""
    count = int(density * len(flat))
    threshold = flat.abs().kthvalue(len(flat) - count + 1).values
    return flat * (flat.abs() >= threshold)


def _flat(state: State) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in state.values()])


def _unflat(flat: Tensor, like: State) -> State:
    pieces = flat.split([tensor.numel() for tensor in like.values()])
    return {name: piece.view_as(like[name]) for name, piece in zip(like, pieces, strict=True)}


def _is_matrix(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 2 and "embedding" not in name


def _spectral(
    base: State, vectors: Sequence[State], merge: Callable[[list[Tensor]], Tensor], scale: float
) -> State:
    """Merge the matrices of the task vectors by ``merge``, everything else by the mean."""
    merged = {}
    for name, tensor in base.items():
        parts = [vector[name] for vector in vectors]
        delta = scale * merge(parts) if _is_matrix(name, tensor) else torch.stack(parts).mean(0)
        merged[name] = tensor + delta
    return merged


def iso_c(base: State, vectors: Sequence[State], scale: float = 1.0) -> State:
    """Marczak et al., arXiv:2502.04959: the sum with all its singular values made equal."""

    def merge(parts: list[Tensor]) -> Tensor:
        left, values, right = torch.linalg.svd(torch.stack(parts).sum(0), full_matrices=False)
        return values.mean() * (left @ right)

    return _spectral(base, vectors, merge, scale)


def tsv_m(base: State, vectors: Sequence[State], scale: float = 1.0) -> State:
    """Gargiulo et al., arXiv:2412.00081: keep 1/T of each rank, then whiten the joint bases."""

    def merge(parts: list[Tensor]) -> Tensor:
        rank = max(1, min(parts[0].shape) // len(parts))
        cut = [torch.linalg.svd(part, full_matrices=False) for part in parts]
        left = _orthogonal(torch.cat([u[:, :rank] for u, _, _ in cut], 1))
        right = _orthogonal(torch.cat([v[:rank] for _, _, v in cut], 0))
        return (left * torch.cat([s[:rank] for _, s, _ in cut])) @ right

    return _spectral(base, vectors, merge, scale)


def _orthogonal(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


@torch.no_grad()
def regmean(
    model: CLIPModel,
    base: State,
    vectors: Sequence[State],
    tasks: Sequence[Task],
    *,
    images: int = 256,
    shrink: float = 0.9,
) -> State:
    """Jin et al., arXiv:2212.09849: least squares per linear layer, the rest averaged."""
    merged = average(base, vectors)
    grams, products = {}, {}
    for vector, task in zip(vectors, tasks, strict=True):
        expert = add(base, vector)
        for name, gram in _grams(model, expert, task.train.images[:images]).items():
            shrunk = shrink * gram + (1 - shrink) * torch.diag(gram.diag())
            grams[name] = grams.get(name, 0) + shrunk
            products[name] = products.get(name, 0) + shrunk @ expert[f"{name}.weight"].T
    for name, gram in grams.items():
        ridge = 1e-6 * gram.diag().mean() * torch.eye(len(gram))
        merged[f"{name}.weight"] = torch.linalg.solve(gram + ridge, products[name]).T.contiguous()
    return merged


def _grams(model: CLIPModel, weights: State, images: Tensor) -> dict[str, Tensor]:
    """Return the mean outer product of each linear layer's inputs."""
    grams: dict[str, Tensor] = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            grams[name] = rows.T @ rows / len(rows)

        return record

    tower = model.vision_model
    hooks = [
        module.register_forward_pre_hook(recorder(name))
        for name, module in tower.named_modules()
        if isinstance(module, nn.Linear)
    ]
    torch.func.functional_call(tower, dict(weights), (pixels(images),))
    for hook in hooks:
        hook.remove()
    return grams
