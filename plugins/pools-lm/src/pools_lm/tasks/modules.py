"""What a SentenceTransformer does with an encoder's output, read from the files beside it.

The same as sentence-transformers does: pooling, dense layers and normalising, in the order of
`modules.json`. Without that file, the mean over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load
from torch import nn
from torch.nn import functional

from fusion_core.errors import RecipeError
from pools_lm.beside import MODULES, content_in, modules_in, parsed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from fusion_core.weights import Files

    #: from vectors, shape (texts, width), to others
    Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pooling:
    """How the vectors of a text's tokens become one; of several ways, side by side."""

    modes: Sequence[str] = ("mean",)

    def __call__(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return vectors of shape (texts, width); `hidden` has shape (texts, tokens, width).

        The mask, of shape (texts, tokens), says by zeros what is padding, on the right.
        """
        return torch.cat([_POOLED[mode](hidden, mask) for mode in self.modes], dim=-1)


@dataclass(frozen=True)
class Dense:
    """A linear layer and an activation, which are not merged."""

    weight: Tensor
    bias: Tensor | None
    activation: nn.Module

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return vectors of shape (texts, outputs)."""
        bias = None if self.bias is None else self.bias.to(vectors)
        found: Tensor = self.activation(functional.linear(vectors, self.weight.to(vectors), bias))
        return found


def normalised(vectors: Tensor) -> Tensor:
    """Return vectors of length 1."""
    return functional.normalize(vectors, dim=-1)


def modules_of(files: Files) -> tuple[Pooling, Sequence[Step]]:
    """Return the pooling and what follows; raises `RecipeError` for what is not known here."""
    if MODULES not in files:
        return Pooling(), ()
    listed = [(kind.rpartition(".")[2], path) for kind, path in modules_in(files)]
    kinds = [kind for kind, _ in listed]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise _unknown(f"{MODULES} lists {', '.join(kinds)}, not a Transformer and its Pooling")
    pooling = _pooling(files, listed[1][1])
    return pooling, [_step(kind, files, path) for kind, path in listed[2:]]


def _pooling(files: Files, path: str) -> Pooling:
    fields = parsed(files, f"{path}/config.json")
    given = fields.get("pooling_mode") or list(_old_modes(fields)) or "mean"
    modes = [given] if isinstance(given, str) else given
    if unknown := [mode for mode in modes if mode not in _POOLED]:
        raise _unknown(f"{path} pools by {', '.join(unknown)}")
    if not fields.get("include_prompt", True):
        raise _unknown(f"{path} leaves the prompt out of what it pools")
    return Pooling(modes)


def _old_modes(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield the ways of pooling as older files name them."""
    for mode, name in _OLD_MODES.items():
        if fields.get(f"pooling_mode_{name}"):
            yield mode


def _step(kind: str, files: Files, path: str) -> Step:
    if kind == "Normalize":
        return normalised
    if kind != "Dense":
        raise _unknown(f"{MODULES} lists a {kind}")
    fields = parsed(files, f"{path}/config.json")
    activation = str(fields.get("activation_function", "torch.nn.Tanh"))
    kept = fields.get("module_input_name", "sentence_embedding") == "sentence_embedding"
    if fields.get("use_residual") or not kept or not activation.startswith("torch.nn."):
        raise _unknown(f"{path} is not a plain layer")
    name = f"{path}/model.safetensors"
    if name not in files:
        raise _unknown(f"{path} has no model.safetensors")
    tensors = load(content_in(files, name))
    made = getattr(nn, activation.rpartition(".")[2])()
    return Dense(tensors["linear.weight"], tensors.get("linear.bias"), made)


def _unknown(problem: str) -> RecipeError:
    return RecipeError(
        f"{problem}: such embeddings cannot be made here",
        hint="Merge it without tasks, and measure the output with sentence-transformers.",
    )


def _first(hidden: Tensor, mask: Tensor) -> Tensor:
    del mask
    return hidden[:, 0]


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return _weighted(hidden, (places == mask.sum(dim=1, keepdim=True)).to(hidden.dtype))


def _largest(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(dim=1)


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return _weighted(hidden, mask.to(hidden.dtype))


def _mean_of_root(hidden: Tensor, mask: Tensor) -> Tensor:
    counts = mask.sum(dim=1, keepdim=True)
    return _mean(hidden, mask) * counts.to(hidden.dtype).sqrt()


def _later_more(hidden: Tensor, mask: Tensor) -> Tensor:
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return _weighted(hidden, (mask * places).to(hidden.dtype))


def _weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    return (hidden * weights.unsqueeze(-1)).sum(dim=1) / weights.sum(dim=1, keepdim=True)


_POOLED: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _largest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_of_root,
    "weightedmean": _later_more,
    "lasttoken": _last,
}
_OLD_MODES = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}
