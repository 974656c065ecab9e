"""The modules of a SentenceTransformer after its encoder, read from its side files.

Pooling, dense layers and normalization run in the order of `modules.json`, as in
sentence-transformers. Without this file, an embedding is the mean over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load
from torch import nn
from torch.nn import functional

from fusion_core.errors import RecipeError
from pools_lm.side_files import MODULES, list_modules, load_json, read_content

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from fusion_core.weights import Files

    #: from vectors, shape (texts, width), to vectors
    Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pooling:
    """One vector per text from its token vectors; several modes are concatenated."""

    modes: Sequence[str] = ("mean",)

    def __call__(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return vectors of shape (texts, width); `hidden` has shape (texts, tokens, width).

        The mask has shape (texts, tokens), with zeros for the padding on the right.
        """
        return torch.cat([_MODES[mode](hidden, mask) for mode in self.modes], dim=-1)


@dataclass(frozen=True)
class Dense:
    """A linear layer with an activation. It is not merged."""

    weight: Tensor
    bias: Tensor | None
    activation: nn.Module

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return vectors of shape (texts, outputs)."""
        bias = None if self.bias is None else self.bias.to(vectors)
        outputs = functional.linear(vectors, self.weight.to(vectors), bias)
        activated: Tensor = self.activation(outputs)
        return activated


def normalize(vectors: Tensor) -> Tensor:
    """Return vectors of length 1."""
    return functional.normalize(vectors, dim=-1)


def read_modules(files: Files) -> tuple[Pooling, Sequence[Step]]:
    """Return the pooling and the steps after it; raise `RecipeError` for unsupported modules."""
    if MODULES not in files:
        return Pooling(), ()
    modules = [(name.rpartition(".")[2], path) for name, path in list_modules(files)]
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise unsupported_embeddings(
            f"{MODULES} lists {', '.join(kinds)}, expected a Transformer and its Pooling first"
        )
    pooling = _read_pooling(files, modules[1][1])
    return pooling, [_read_step(kind, files, path) for kind, path in modules[2:]]


def _read_pooling(files: Files, path: str) -> Pooling:
    fields = load_json(files, f"{path}/config.json")
    # older files have one flag per mode
    flagged = [mode for mode, name in _OLD_MODES.items() if fields.get(f"pooling_mode_{name}")]
    setting = fields.get("pooling_mode") or flagged or "mean"
    modes = [setting] if isinstance(setting, str) else setting
    if unknown := [mode for mode in modes if mode not in _MODES]:
        raise unsupported_embeddings(f"{path} has the pooling mode {', '.join(unknown)}")
    if not fields.get("include_prompt", True):
        raise unsupported_embeddings(f"{path} excludes the prompt from pooling")
    return Pooling(modes)


def _read_step(kind: str, files: Files, path: str) -> Step:
    if kind == "Normalize":
        return normalize
    if kind != "Dense":
        raise unsupported_embeddings(f"{MODULES} lists a {kind}")
    fields = load_json(files, f"{path}/config.json")
    activation = str(fields.get("activation_function", "torch.nn.Tanh"))
    input_name = fields.get("module_input_name", "sentence_embedding")
    if (
        fields.get("use_residual")
        or input_name != "sentence_embedding"
        or not activation.startswith("torch.nn.")
    ):
        raise unsupported_embeddings(f"{path} is not a plain dense layer")
    name = f"{path}/model.safetensors"
    if name not in files:
        raise unsupported_embeddings(f"{path} has no model.safetensors")
    tensors = load(read_content(files, name))
    activation_module = getattr(nn, activation.rpartition(".")[2])()
    return Dense(tensors["linear.weight"], tensors.get("linear.bias"), activation_module)


def unsupported_embeddings(problem: str) -> RecipeError:
    """Return the error for a SentenceTransformer that no task can measure."""
    return RecipeError(
        f"unsupported embeddings: {problem}",
        hint="Merge without tasks, and evaluate the output with sentence-transformers.",
    )


def _pool_first(hidden: Tensor, mask: Tensor) -> Tensor:
    del mask
    return hidden[:, 0]


def _pool_last(hidden: Tensor, mask: Tensor) -> Tensor:
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return _pool_weighted(hidden, (positions == mask.sum(dim=1, keepdim=True)).to(hidden.dtype))


def _pool_max(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(dim=1)


def _pool_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return _pool_weighted(hidden, mask.to(hidden.dtype))


def _pool_mean_sqrt(hidden: Tensor, mask: Tensor) -> Tensor:
    counts = mask.sum(dim=1, keepdim=True)
    return _pool_mean(hidden, mask) * counts.to(hidden.dtype).sqrt()


def _pool_by_position(hidden: Tensor, mask: Tensor) -> Tensor:
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return _pool_weighted(hidden, (mask * positions).to(hidden.dtype))


def _pool_weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    return (hidden * weights.unsqueeze(-1)).sum(dim=1) / weights.sum(dim=1, keepdim=True)


_MODES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _pool_first,
    "max": _pool_max,
    "mean": _pool_mean,
    "mean_sqrt_len_tokens": _pool_mean_sqrt,
    "weightedmean": _pool_by_position,
    "lasttoken": _pool_last,
}
_OLD_MODES = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}
