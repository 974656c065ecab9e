"""The modules of a model that an adapter can change, found by names and shapes of tensors."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from fusion_lora.reading.factors import PREFIX
from pools_checkpoints import are_neighbours_transposed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from torch import Tensor

    from fusion_core import TensorInfo, WeightSource

_WEIGHT = ".weight"
#: The last names of embeddings. GPT-NeoX's head `embed_out`, and layers that multiply patches or
#: project embeddings, are linear.
_EMBEDDING = re.compile(
    r"(?!embed_out$|.*(?:patch|proj|dense|linear|mapping|transform))"
    r"(?:(?:.*_)?emb.*|wte|wpe|shared|.*relative_attention_bias)"
)
_ROUTER = re.compile(
    r"(?P<layer>.+\.(?:mlp|block_sparse_moe|feed_forward))\.(?:gate|router)\.weight"
)
_EXPERT = re.compile(r"\.experts\.\d+\.")
_MATRIX, _PACKED = 2, 3
#: Kinds of tensors that change but are not in an adapter.
EXPERTS, SKIPPED = "experts", "skipped"


class Form(Enum):
    """How PEFT stores and multiplies the factors of a module."""

    LINEAR = "linear"
    #: a linear layer that stores (inputs, outputs), as GPT-2's
    TRANSPOSED = "transposed"
    EMBEDDING = "embedding"
    CONVOLUTION = "convolution"
    #: a router of a mixture, which is not a linear layer: PEFT adapts its parameter
    PARAMETER = "parameter"


@dataclass(frozen=True, slots=True)
class Module:
    """A module whose weight changes by a product of factors."""

    name: str
    form: Form
    info: TensorInfo

    def name_factors(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        """Return factors of the stored matrix under PEFT's names and in its shapes."""
        key = f"{PREFIX}{self.name}.lora_"
        if self.form is Form.EMBEDDING:
            return {f"{key}embedding_A": left.mT, f"{key}embedding_B": right.mT}
        if self.form is Form.TRANSPOSED:
            return {f"{key}A.weight": left.mT, f"{key}B.weight": right.mT}
        kernel = self.info.shape[2:]
        a = right.reshape(len(right), *self.info.shape[1:])
        b = left.reshape(*left.shape, *[1] * len(kernel))
        return {f"{key}A.weight": a, f"{key}B.weight": b}


def find_module(
    base: WeightSource, name: str, *, is_embedding: bool | None = None
) -> Module | None:
    """Return the module of a tensor, or None if PEFT cannot express its change by factors.

    Those are vectors, convolutions that may have groups, and experts: PEFT adapts the packed
    parameter of all experts of a layer (`target_parameters`).

    Shapes do not show whether a matrix is an embedding. `is_embedding` says it, for example from
    the factors of an adapter. If it is None, the last name of the module decides
    (`embed_in`, `token_embedding`, `wte`), but a module with a bias is linear.
    """
    info = base.infos[name]
    module = name.removesuffix(_WEIGHT)
    if module == name or not info.dtype.is_floating_point or _EXPERT.search(name):
        return None
    if len(info.shape) < _MATRIX or min(info.shape) < 1:
        return None
    router = _ROUTER.fullmatch(name)
    if router and any(other.startswith(f"{router['layer']}.experts.") for other in base.infos):
        return Module(module, Form.PARAMETER, info)
    if len(info.shape) > _MATRIX:
        is_grouped = info.shape[1] == 1
        return None if is_grouped else Module(module, Form.CONVOLUTION, info)
    if is_embedding is None:
        is_embedding = _looks_like_embedding(base, module)
    if is_embedding:
        return Module(module, Form.EMBEDDING, info)
    # Conv1D always has a bias. A head without one is linear, even in GPT-2.
    transposed = f"{module}.bias" in base.infos and are_neighbours_transposed(base, name)
    return Module(module, Form.TRANSPOSED if transposed else Form.LINEAR, info)


def _looks_like_embedding(base: WeightSource, module: str) -> bool:
    last = module.rpartition(".")[2]
    return _EMBEDDING.fullmatch(last) is not None and f"{module}.bias" not in base.infos


def is_vector(info: TensorInfo) -> bool:
    """Tell whether a tensor is small enough to store whole: a norm, a bias, a scalar."""
    return len(info.shape) < _MATRIX and info.dtype.is_floating_point


def describe_kind(name: str, info: TensorInfo) -> str:
    """Name the kind of a tensor that factors cannot change."""
    is_packed = len(info.shape) == _PACKED and min(info.shape[:_MATRIX]) > 1
    if _EXPERT.search(name) or is_packed:
        return EXPERTS
    if name.endswith(".bias"):
        return "biases"
    return "norms and other vectors" if len(info.shape) < _MATRIX else "other tensors"


def choose_targets(chosen: Collection[str], every: Collection[str]) -> list[str]:
    """Return names for `target_modules` that match the chosen modules and no others.

    A module's last name stands for it if all modules of that name are chosen. A number never
    does, because modules without tensors have numbers too.
    """
    last = {module: module.rpartition(".")[2] for module in every}
    totals, counts = Counter(last.values()), Counter(last[module] for module in chosen)
    return sorted(
        {
            last[module]
            if counts[last[module]] == totals[last[module]] and not last[module].isdigit()
            else module
            for module in chosen
        }
    )


def most_common(values: Iterable[int]) -> int:
    """Return the most frequent value, the largest of several."""
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value))
