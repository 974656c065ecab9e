"""Extraction of an adapter: each tensor becomes factors, is stored whole, or is left out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING

import torch

from fusion_core.errors import RecipeError, WeightsError
from fusion_core.weights import check_finite, read_range, run_all
from fusion_lora.adapter import Adapter
from fusion_lora.experts import find_groups, name_factors
from fusion_lora.factorise import Factors, compress, factorise
from fusion_lora.matrix import HELD, HELD_OF_FILES, BlockedMatrix
from fusion_lora.modules import SKIPPED, describe_kind, find_module
from fusion_lora.reading.factors import PREFIX
from fusion_lora.reading.live_names import find_converted
from fusion_lora.record import Record

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from fusion_core import Progress, WeightSource
    from fusion_lora.experts import ExpertGroup
    from fusion_lora.modules import Module
    from fusion_lora.spool import Spool


@dataclass(frozen=True)
class Ranks:
    """The rank of each module: a number, a share of the energy, or that of the model's factors."""

    rank: int | None = None
    energy: float | None = None
    #: ranks by glob pattern on tensor names; the first match counts
    patterns: Mapping[str, int] = field(default_factory=dict)
    #: ranks by name
    by_name: Mapping[str, int] = field(default_factory=dict)

    def of(self, name: str, *parts: str) -> tuple[int | None, float | None]:
        """Return the rank and the energy of a tensor. A rank of its own replaces the energy.

        Patterns also match the stored tensors that a packed one consists of, its `parts`.
        """
        if name in self.by_name:
            return self.by_name[name], None
        for pattern, rank in self.patterns.items():
            if any(fnmatchcase(part, pattern) for part in (name, *parts)):
                return rank, None
        return self.rank, self.energy


@dataclass(frozen=True)
class Change:
    """The change of one tensor: its norm and, if it gets factors, these with their module."""

    name: str
    squared_norm: float
    product: tuple[Module, Factors] | None = None


@dataclass(frozen=True)
class Extraction:
    """The extraction of an adapter on `base` from the weights of a model."""

    model: WeightSource
    base: WeightSource
    ranks: Ranks
    #: the tensors that get factors; others are left out
    names: Collection[str]
    #: the tensors to store whole
    whole: Collection[str] = ()
    dtype: torch.dtype = torch.float32
    #: whether a tensor is an embedding, where this is known
    embeddings: Mapping[str, bool] = field(default_factory=dict)

    def run(self, spool: Spool, executor: Executor, progress: Progress) -> tuple[Adapter, Record]:
        """Write the adapter's tensors to a spool; return the adapter's description and errors."""
        adapter, record = Adapter(), Record()
        groups = [group for group in find_groups(self.base.infos) if self._is_chosen(group)]
        grouped = {name for group in groups for name in group.tensors}
        infos = [info for info in self.model.infos.values() if info.dtype.is_floating_point]
        total = sum(info.numel for info in infos)
        infos = [info for info in infos if info.name not in grouped]
        infos.sort(key=lambda info: info.name in self.whole)  # biases follow their modules
        self.model.prepare(executor)
        with progress.track("extract", total=total) as advance:
            changes = run_all(executor, self.extract, [info.name for info in infos])
            for info, change in zip(infos, changes, strict=True):
                if change.squared_norm:
                    self._store(change, adapter, record, spool)
                advance(info.numel)
            for layer in _group_by_module(groups):
                self._store_experts(layer, executor, adapter, record, spool)
                names = (name for group in layer for name in group.tensors)
                advance(sum(self.model.infos[name].numel for name in names))
        if not spool.infos:
            raise WeightsError(
                f"nothing to put into an adapter: {len(record.treatments)} tensors differ from the "
                "base, and none of them is among those to store",
                hint="Check that the model is not the base, and the patterns of tensors.",
            )
        self._complete_whole(adapter, spool)
        self._refuse_converted(adapter)
        return adapter, record

    def extract(self, name: str) -> Change:
        """Return the change of one tensor."""
        is_factored = name in self.names and name not in self.whole
        module = None
        if is_factored:
            module = find_module(self.base, name, is_embedding=self.embeddings.get(name))
        if module is None:
            return Change(name, self._read_difference(name).squared_norm())
        rank, energy = self.ranks.of(name)
        low_rank = self.model.low_rank(name)
        if low_rank is not None and energy is None:
            factors = compress(*low_rank.read(), rank, self.dtype)
        else:
            factors = factorise(self._read_difference(name), rank, energy, self.dtype)
        return Change(name, factors.squared_norm, (module, factors))

    def extract_expert(self, work: tuple[ExpertGroup, int]) -> Factors:
        """Return the factors of one expert's matrix, as it is stored."""
        group, index = work
        rank, energy = self.ranks.of(group.name, *group.tensors)
        rows = torch.cat(
            [
                self._read_rows(tensor, self.model.infos[tensor].shape[-1], first, last)
                for tensor, first, last in group.experts[index]
            ]
        )
        height, width = rows.shape
        matrix = BlockedMatrix(height, width, lambda first, last: rows[first:last])
        return factorise(matrix, rank, energy, self.dtype)

    def _is_chosen(self, group: ExpertGroup) -> bool:
        """Tell whether an adapter holds factors of experts: all of their tensors are chosen."""
        return group.tensors.issubset(self.names) and group.tensors.isdisjoint(self.whole)

    def _store_experts(
        self,
        layer: Sequence[ExpertGroup],
        executor: Executor,
        adapter: Adapter,
        record: Record,
        spool: Spool,
    ) -> None:
        """Store the factors of one layer's experts. A parameter that did not change is left out."""
        changed: dict[ExpertGroup, tuple[torch.Tensor, torch.Tensor]] = {}
        for group in layer:
            work = [(group, index) for index in range(len(group.experts))]
            factors = list(run_all(executor, self.extract_expert, work))
            norms, errors = (
                math.fsum(getattr(factor, field) for factor in factors)
                for field in ("squared_norm", "squared_error")
            )
            if norms:
                changed[group] = group.join(factors)
                rank = max(factor.rank for factor in factors)
                adapter.parameters[group.name] = rank
                record.add(group.name, "factors", norms, errors, rank=rank)
        for group, (a, b) in changed.items():
            for key, values in name_factors(group, changed, a, b).items():
                spool.add(key, [values], tuple(values.shape))

    def _store(self, change: Change, adapter: Adapter, record: Record, spool: Spool) -> None:
        name, norm = change.name, change.squared_norm
        if change.product is not None:
            module, factors = change.product
            adapter.add(module, factors.rank)
            record.add(name, "factors", norm, factors.squared_error, rank=factors.rank)
            for key, values in module.name_factors(factors.left, factors.right).items():
                spool.add(key, [values], tuple(values.shape))
        elif name in self.whole:
            record.add(name, "whole", norm, 0.0)
            key = adapter.name_whole(name)
            spool.add(key, self._read_whole(self.model, name), self.model.infos[name].shape)
        else:
            is_skipped = name not in self.names
            kind = SKIPPED if is_skipped else describe_kind(name, self.base.infos[name])
            record.add(name, kind, norm, norm)

    def _complete_whole(self, adapter: Adapter, spool: Spool) -> None:
        """Add the tensors without a change of modules that are stored whole, as the base's."""
        for name in adapter.complete_whole(self.base.infos.keys()):
            key = f"{PREFIX}{name}"
            if key not in spool.infos:
                spool.add(key, self._read_whole(self.base, name), self.base.infos[name].shape)

    def _refuse_converted(self, adapter: Adapter) -> None:
        """Raise `RecipeError` for factors of tensors that a live model has in parts or as a part.

        PEFT would ignore them without a warning.
        """
        weights = [f"{module}.weight" for module in adapter.ranks]
        if converted := find_converted(self.base, [*weights, *adapter.parameters]):
            raise RecipeError(
                f"{len(converted)} tensors change that transformers divides or joins on loading, "
                f"such as {converted[0]}: PEFT would ignore their factors",
                hint="Save base and model as transformers builds them, and use these: "
                "model.save_pretrained(path, save_original_format=False)",
            )

    def _read_whole(self, model: WeightSource, name: str) -> Iterator[torch.Tensor]:
        """Yield a tensor of a model in the dtype of the base."""
        dtype = self.base.infos[name].dtype
        return (model.read(name, *span).to(dtype) for span in model.ranges(name))

    def _read_difference(self, name: str) -> BlockedMatrix:
        """Return a tensor's difference from the base as a matrix."""
        rows, *others = self.model.infos[name].shape or (1,)
        width = math.prod(others)
        held = HELD if self.model.sources else HELD_OF_FILES
        return BlockedMatrix(rows, width, partial(self._read_rows, name, width), held=held)

    def _read_rows(self, name: str, width: int, first: int, last: int) -> torch.Tensor:
        """Return rows of `width` entries of a tensor's difference from the base.

        Raises `WeightsError` for NaN and infinity.
        """
        span = (name, first * width, last * width)
        model, base = (read_range(source, *span).float() for source in (self.model, self.base))
        difference = model.sub(base).reshape(last - first, width)
        check_finite(difference, name, f"{self.model.describe()} - {self.base.describe()}")
        return difference


def _group_by_module(groups: Iterable[ExpertGroup]) -> Iterable[list[ExpertGroup]]:
    """Return the groups of each module; shards of a model may store them apart."""
    layers: dict[str, list[ExpertGroup]] = {}
    for group in groups:
        layers.setdefault(group.module, []).append(group)
    return layers.values()
