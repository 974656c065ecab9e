"""Norms and cosines of task vectors.

Weights are read once in blocks, so memory does not grow with the models.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Cut, hub, load_models, show_notes_on
from fusion_core.commands import load_plugins
from fusion_core.weights import Operands, Scan, SerialExecutor, layers_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from fusion_core import ModelPool, Piece, Progress, TensorInfo

_OFFLINE = "HF_HUB_OFFLINE"


@dataclass(frozen=True)
class TaskVectors:
    """Inner products of the base and the task vectors, by part of the model."""

    experts: Sequence[str]
    #: part -> fp64 of shape (1 + experts, 1 + experts), with the base in the first row
    products: Mapping[str, Tensor]

    @cached_property
    def _whole(self) -> Tensor:
        return torch.stack([*self.products.values()]).sum(0)

    @property
    def base_norm(self) -> float:
        """The norm of the base."""
        return float(_norms(self._whole)[0])

    @property
    def norms(self) -> list[float]:
        """The norm of every task vector."""
        return _norms(self._whole)[1:].tolist()

    @property
    def norm_of_sum(self) -> float:
        """The norm of the sum of all task vectors."""
        return float(self._whole[1:, 1:].sum().clamp(min=0).sqrt())

    @property
    def cosines(self) -> list[list[float]]:
        """The cosine of every pair of task vectors; NaN if one of them is zero."""
        cosines: list[list[float]] = _cosines(self._whole[1:, 1:]).tolist()
        return cosines

    def mean_cosine(self, part: str) -> float:
        """Return the mean cosine between two task vectors within a part of the model."""
        cosines = _cosines(self.products[part][1:, 1:])
        return float(cosines[torch.ones_like(cosines).triu(1).bool()].nanmean())

    @property
    def norms_by_part(self) -> Mapping[str, list[float]]:
        """The norms of task vectors within each part of the model."""
        return {part: _norms(product)[1:].tolist() for part, product in self.products.items()}

    @property
    def base_norm_by_part(self) -> Mapping[str, float]:
        """The norm of the base within each part of the model."""
        return {part: float(_norms(product)[0]) for part, product in self.products.items()}


def read_task_vectors(
    recipe: Mapping[str, Any], progress: Progress, blocked: frozenset[str]
) -> TaskVectors | None:
    """Read the task vectors of a recipe's models; None without a base or with a single expert.

    Downloads nothing. Raises a `FusionError` for missing models.
    """
    with _offline(), hub.session(progress):
        pool: ModelPool[Any] = load_models(recipe, load_plugins(blocked))
        if pool.base is None or len(pool.experts) < 2:  # noqa: PLR2004 - nothing to compare
            return None
        return read_vectors(Operands(pool.base, pool.experts), progress)


def read_vectors(operands: Operands, progress: Progress) -> TaskVectors:
    """Compute the inner products of the base and the task vectors."""
    by_name = {info.name: info for info in merged_infos(operands)}
    parts = group_by_part(by_name)
    products = {}
    track = progress.track("read task vectors", total=len(parts))
    with track as advance, show_notes_on(advance):
        for part, names in parts.items():
            products[part] = _products(operands, [by_name[name] for name in names])
            advance(1, note=part)
    return TaskVectors(list(operands.experts), products)


def measure_cosine(operands: Operands, names: Iterable[str]) -> float:
    """Return the mean cosine between two task vectors within some tensors.

    NaN if at most one task vector differs from zero there.
    """
    infos = [info for info in merged_infos(operands) if info.name in {*names}]
    return TaskVectors(list(operands.experts), {"": _products(operands, infos)}).mean_cosine("")


def merged_infos(operands: Operands) -> list[TensorInfo]:
    """Return the merged tensors: all floating-point ones."""
    infos = operands.reference.infos.values()
    return [info for info in infos if info.dtype.is_floating_point]


def make_scan(operands: Operands, infos: Sequence[TensorInfo], cut: Cut = Cut.ELEMENT) -> Scan:
    """Return a pass over some tensors in pieces that `cut` and the sources allow."""
    coarsest = reduce(Cut.coarser, (source.cut for source in operands.sources), cut)
    return Scan(operands, infos, SerialExecutor(), coarsest)


@contextmanager
def _offline() -> Iterator[None]:
    """Allow only the hub's cache, not downloads."""
    before = os.environ.get(_OFFLINE)
    os.environ[_OFFLINE] = "1"
    try:
        yield
    finally:
        del os.environ[_OFFLINE]
        os.environ |= {} if before is None else {_OFFLINE: before}


def group_by_part(names: Iterable[str]) -> dict[str, list[str]]:
    """Group tensor names by layer, or by the part of the model if they are outside all layers.

    Layers are in numeric order, at the position of their stack's first tensor. Labels leave out the
    common prefix of all names.
    """
    names = list(names)
    start = len(".".join(_common_prefix(names)))
    layers = {
        name: (stack[start:].strip("."), number)
        for stack, numbered in layers_of(names).items()
        for number, members in numbered.items()
        for name in members
    }
    roots = {stack.partition(".")[0] for stack, _ in layers.values()}
    keys = [layers.get(name) or (_part(name[start:].lstrip("."), roots), -1) for name in names]
    first = {stack: index for index, (stack, _) in reversed([*enumerate(keys)])}
    order = sorted(range(len(names)), key=lambda index: (first[keys[index][0]], keys[index][1]))
    parts: dict[str, list[str]] = {}
    for index in order:
        stack, layer = keys[index]
        label = f"{stack}.{layer}".lstrip(".") if layer >= 0 else stack
        parts.setdefault(label, []).append(names[index])
    return parts


def _part(name: str, roots: set[str]) -> str:
    """Return the part of a tensor outside all layers; never a part that contains layers."""
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if first in roots and rest else first


def _common_prefix(names: Sequence[str]) -> list[str]:
    """Return the leading components of all names, without their last components."""
    split = [name.split(".")[:-1] for name in names]
    pairs = zip(min(split), max(split), strict=False)
    return [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]


def _products(operands: Operands, infos: Sequence[TensorInfo]) -> Tensor:
    """Return the inner products over some tensors in fp64."""
    count = 1 + len(operands.experts)
    zero = torch.zeros(count, count, dtype=torch.float64)
    return make_scan(operands, infos)(_gram, torch.add, zero)


def _gram(piece: Piece) -> Tensor:
    rows = torch.cat([piece.base[None], piece.task_vectors]).flatten(1).double()
    return rows @ rows.T


def _cosines(product: Tensor) -> Tensor:
    norms = _norms(product)
    return product / norms.outer(norms)


def _norms(product: Tensor) -> Tensor:
    return product.diagonal().clamp(min=0).sqrt()
