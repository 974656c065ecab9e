"""Lengths and angles of task vectors, read from models.

One pass over the weights in blocks; memory does not grow with the models.
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
    """Inner products of the base and the experts' task vectors, by part of the model."""

    experts: Sequence[str]
    #: part -> float64 of shape (1 + experts, 1 + experts), the base's row first
    products: Mapping[str, Tensor]

    @cached_property
    def _whole(self) -> Tensor:
        return torch.stack([*self.products.values()]).sum(0)

    @property
    def base_norm(self) -> float:
        """The length of the base."""
        return float(_norms(self._whole)[0])

    @property
    def norms(self) -> list[float]:
        """The length of every task vector."""
        return _norms(self._whole)[1:].tolist()

    @property
    def norm_of_sum(self) -> float:
        """The length of all task vectors' sum."""
        return float(self._whole[1:, 1:].sum().clamp(min=0).sqrt())

    @property
    def cosines(self) -> list[list[float]]:
        """The cosine of every two task vectors; not a number where one of them is zero."""
        found: list[list[float]] = _cosines(self._whole[1:, 1:]).tolist()
        return found

    def mean_cosine(self, part: str) -> float:
        """Return the mean cosine of two task vectors within a part of the model."""
        cosines = _cosines(self.products[part][1:, 1:])
        return float(cosines[torch.ones_like(cosines).triu(1).bool()].nanmean())

    @property
    def norms_by_part(self) -> Mapping[str, list[float]]:
        """The lengths of task vectors within each part of the model."""
        return {part: _norms(product)[1:].tolist() for part, product in self.products.items()}

    @property
    def base_norm_by_part(self) -> Mapping[str, float]:
        """The length of the base within each part of the model."""
        return {part: float(_norms(product)[0]) for part, product in self.products.items()}


def task_vectors(
    recipe: Mapping[str, Any], progress: Progress, blocked: frozenset[str]
) -> TaskVectors | None:
    """Read what a recipe merges; None without a base, or with less than two experts.

    Nothing is downloaded. Raises a `FusionError` for models that are not here.
    """
    with _offline(), hub.session(progress):
        return _read(load_models(recipe, load_plugins(blocked)), progress)


def _read(pool: ModelPool[Any], progress: Progress) -> TaskVectors | None:
    if pool.base is None or len(pool.experts) < 2:  # noqa: PLR2004 - nothing to compare
        return None
    return read_vectors(Operands(pool.base, pool.experts), progress)


def read_vectors(operands: Operands, progress: Progress) -> TaskVectors:
    """Read the task vectors of experts beside a base."""
    by_name = {info.name: info for info in merged_infos(operands)}
    parts = parts_of(by_name)
    products = {}
    track = progress.track("read task vectors", total=len(parts))
    with track as advance, show_notes_on(advance):
        for part, names in parts.items():
            products[part] = _products(operands, [by_name[name] for name in names])
            advance(1, note=part)
    return TaskVectors(list(operands.experts), products)


def merged_infos(operands: Operands) -> list[TensorInfo]:
    """Return the tensors that are merged: those of numbers with a fraction."""
    infos = operands.reference.infos.values()
    return [info for info in infos if info.dtype.is_floating_point]


def scan_of(operands: Operands, infos: Sequence[TensorInfo], cut: Cut = Cut.ELEMENT) -> Scan:
    """Return a pass over some tensors, in pieces no finer than they, or `cut`, allow."""
    coarsest = reduce(Cut.coarser, (source.cut for source in operands.sources), cut)
    return Scan(operands, infos, SerialExecutor(), coarsest)


@contextmanager
def _offline() -> Iterator[None]:
    """Have the hub's cache serve what is asked of the hub, and nothing else."""
    before = os.environ.get(_OFFLINE)
    os.environ[_OFFLINE] = "1"
    try:
        yield
    finally:
        del os.environ[_OFFLINE]
        os.environ |= {} if before is None else {_OFFLINE: before}


def parts_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Return names of tensors by layer and, of what belongs to none, by the part of the model.

    Layers come in the order of their numbers, where the first of their stack stands. What all names
    begin with is left out.
    """
    names = list(names)
    start = len(".".join(_shared(names)))
    places = {
        name: (stack[start:].strip("."), number)
        for stack, layers in layers_of(names).items()
        for number, each in layers.items()
        for name in each
    }
    roots = {stack.partition(".")[0] for stack, _ in places.values()}
    keys = [places.get(name) or (_part(name[start:].lstrip("."), roots), -1) for name in names]
    order = {stack: place for place, (stack, _) in reversed([*enumerate(keys)])}
    found: dict[str, list[str]] = {}
    for (stack, layer), name in sorted(
        zip(keys, names, strict=True), key=lambda each: (order[each[0][0]], each[0][1])
    ):
        label = f"{stack}.{layer}".lstrip(".") if layer >= 0 else stack
        found.setdefault(label, []).append(name)
    return found


def _part(name: str, roots: set[str]) -> str:
    """Return what a tensor outside all layers is part of: not what layers are in, too."""
    first, *others = name.split(".")
    return f"{first}.{others[0]}" if first in roots and others else first


def _shared(names: Sequence[str]) -> list[str]:
    """Return the parts that all names begin with, but for a name's last."""
    split = [name.split(".")[:-1] for name in names]
    pairs = zip(min(split), max(split), strict=False)
    return [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]


def _products(operands: Operands, infos: Sequence[TensorInfo]) -> Tensor:
    """Return the inner products over some tensors, in float64."""
    count = 1 + len(operands.experts)
    zero = torch.zeros(count, count, dtype=torch.float64)
    return scan_of(operands, infos)(_gram, torch.add, zero)


def _gram(piece: Piece) -> Tensor:
    rows = torch.cat([piece.base[None], piece.task_vectors]).flatten(1).double()
    return rows @ rows.T


def _cosines(product: Tensor) -> Tensor:
    norms = _norms(product)
    return product / norms.outer(norms)


def _norms(product: Tensor) -> Tensor:
    return product.diagonal().clamp(min=0).sqrt()
