"""Tensors as files store them: as live models have them, joined, or divided."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

from fusion_core.errors import AlignmentError
from fusion_core.weights import Layout, TensorInfo
from pools_checkpoints import swap_axes
from pools_lm.conversion import find_divided, find_joined, find_swapped, row_slots

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

    from fusion_core.weights import WeightSource


@dataclass(frozen=True)
class StoredTensors:
    """The ways in which files may store the tensors of one model class, by live names."""

    class_name: str
    tensors: Mapping[str, Tensor]
    #: each tensor's first name
    tied: Mapping[str, str]
    #: the live tensors that hold several of a file's, such as a mixture's experts
    joined: Layout
    #: the tensors of files that hold several live ones, such as query, key and value
    divided: Layout
    #: the live tensors (count, m, n) that files may store as (count, n, m)
    swapped: frozenset[str]

    @classmethod
    def of(
        cls, model: PreTrainedModel, tensors: Mapping[str, Tensor], tied: Mapping[str, str]
    ) -> Self:
        """Ask transformers how it loads a model, which may be on the meta device."""
        joined, divided = find_joined(model, tensors), find_divided(model, tensors)
        swapped = find_swapped(model, tensors)
        return cls(type(model).__name__, tensors, tied, joined, divided, swapped)

    def fitted(self, source: WeightSource) -> Self:
        """Return these with a file's sizes of the tensors that are joined row by row.

        Without them they count as equally large (OLMo-Hybrid has convolutions of two sizes).
        """
        slots = dict(self.joined.slots)
        for name, parts in self.joined.slots.items():
            shape = self.joined.shapes[name]
            stored = [source.infos[slot.name] for slot in parts if slot.name in source.infos]
            sizes = {info.name: info.shape[0] for info in stored if info.shape[1:] == shape[1:]}
            if len(sizes) == len(parts) and sum(sizes.values()) == shape[0]:
                slots[name] = row_slots(TensorInfo(name, shape, stored[0].dtype), sizes)
        return replace(self, joined=Layout(slots, self.joined.shapes))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every live tensor, and of every tensor that files store instead."""
        joined = self.joined.slots.values()
        return {
            **{name: tuple(tensor.shape) for name, tensor in self.tensors.items()},
            **{slot.name: slot.shape for slots in joined for slot in slots},
            **self.divided.shapes,
        }

    def swap_axes(self, source: WeightSource) -> WeightSource:
        """Return weights whose transposed tensors are as in the live model."""
        return swap_axes(source, {name: self.shapes[name] for name in self.swapped})

    def find_misfit(self, weights: WeightSource) -> str | None:
        """Describe the first missing, unexpected or misshapen tensor; None if all fit."""
        weights = self.swap_axes(weights)
        problem = self._find_misshapen(self.divided.slots_in(weights), weights.infos)
        if problem is not None:
            return problem
        infos = self.divided.unpack(weights).infos
        stored = {self.tied[name] for name in self.tensors.keys() & infos.keys()}
        for name in self.tensors:
            if self.tied[name] not in stored and not self._holds_any(name, infos):
                return f"{name!r} is missing"
        for name in infos:
            if name not in self.shapes:
                return f"{name!r} is unexpected"
        return self._find_misshapen(infos, infos) or self._find_incomplete(infos)

    def arrange(self, source: WeightSource, names: Collection[str] | None = None) -> WeightSource:
        """Return weights with tensors joined and divided as in `names`, by default as live.

        Raises `AlignmentError` for tensors that are missing or have other shapes.
        """
        if names is None:
            source = self.swap_axes(source)
        names = set(self.tensors if names is None else names)
        for layout in (self.divided, self.joined):
            is_joined = layout is self.joined
            suffices = any if is_joined else all  # of what is joined, all tensors must exist
            apart = {
                name: slots
                for name, slots in layout.slots_in(source).items()
                if name not in names and (not is_joined or self._holds_any(name, names))
            }
            problem = self._find_misshapen(apart, source.infos)
            if problem is not None:
                raise self._misfit(source, problem)
            source = Layout(apart, layout.shapes).unpack(source)
            together = {
                name: slots
                for name, slots in layout.slots.items()
                if name in names and suffices(slot.name in source.infos for slot in slots)
            }
            problem = self._find_incomplete(source.infos) if together else None
            if problem is not None:
                raise self._misfit(source, problem)
            source = Layout(together, layout.shapes).pack(source)
        return source

    def _misfit(self, source: WeightSource, problem: str) -> AlignmentError:
        return AlignmentError(
            f"{source.describe()} does not fit {self.class_name}: tensor {problem}",
            hint="Check that the models have one configuration, and that it belongs to them.",
        )

    def _find_misshapen(
        self, names: Collection[str], infos: Mapping[str, TensorInfo]
    ) -> str | None:
        """Describe the first of some tensors that has another shape than it should have."""
        for name in names:
            if infos[name].shape != self.shapes[name]:
                shape, expected = list(infos[name].shape), list(self.shapes[name])
                return f"{name!r} has shape {shape}, expected {expected}"
        return None

    def _holds_any(self, tensor: str, names: Collection[str]) -> bool:
        """Tell whether a live tensor joins tensors with any of these names."""
        return any(slot.name in names for slot in self.joined.slots.get(tensor, ()))

    def _find_incomplete(self, infos: Mapping[str, TensorInfo]) -> str | None:
        """Describe the first tensor that does not fit the others that are joined with it."""
        for slots in self.joined.slots.values():
            stored = [infos[slot.name] for slot in slots if slot.name in infos]
            for slot in slots if stored else ():
                if slot.name not in infos:
                    return f"{slot.name!r} is missing"
                if problem := self._find_misshapen([slot.name], infos):
                    return problem
                info = infos[slot.name]
                if info.dtype != stored[0].dtype:
                    return f"{slot.name!r} has dtype {info.dtype}, the others {stored[0].dtype}"
        return None
