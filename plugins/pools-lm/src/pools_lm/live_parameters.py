"""How the parameters of a live model hold the tensors of a pool's files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from fusion_core.errors import AlignmentError
from fusion_core.weights import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fusion_core import WeightSource
    from fusion_core.weights import Matrices, RenamedSource, Slot
    from pools_lm.architecture import Architecture


@dataclass(frozen=True)
class LiveParameters:
    """The parameters of an architecture, by the names of a pool's first model."""

    architecture: Architecture
    reference: WeightSource
    #: the matrices in the tensors of the files
    stored: Layout
    #: the pool's function, which returns the matrices of a tensor of some shape
    matrices: Callable[[str, tuple[int, ...]], Matrices]

    @property
    def names(self) -> dict[str, str]:
        """The names that methods know parameters by, by live name.

        Usually that of the tensor in the files. A parameter that joins several tensors has its live
        name, and a part of a tensor the name of its matrix.
        """
        return {
            **self._renamed.names,
            **{name: name for name in self._joined.slots},
            **{name: slot.name for name, slot in self._parts.items()},
        }

    @property
    def layout(self) -> Layout:
        """The positions of matrices in parameters, by these names.

        A parameter that is a matrix of a tensor has one position.
        """
        joined = self._joined
        parts = {
            slot.name: (replace(slot, start=0, stop=slot.numel),) for slot in self._parts.values()
        }
        shapes = {name: slots[0].shape for name, slots in parts.items()}
        return Layout(
            {**self._declared.slots, **joined.slots, **parts},
            {**self._declared.shapes, **joined.shapes, **shapes},
        )

    @cached_property
    def _renamed(self) -> RenamedSource:
        return self.architecture.rename_to_live(self.reference)

    @cached_property
    def _declared(self) -> Layout:
        """The matrices in the tensors of the files, transposed where the live model's are."""
        built = self.architecture.files.swap_axes(self._renamed).infos
        slots, shapes = dict(self.stored.slots), dict(self.stored.shapes)
        for live, name in self._renamed.names.items():
            if name in slots and built[live].shape != shapes[name]:
                info = replace(built[live], name=name)
                slots[name] = self.matrices(name, info.shape).slots(info)
                shapes[name] = info.shape
        return Layout(slots, shapes)

    @cached_property
    def _joined(self) -> Layout:
        """The parameters that join several tensors, such as experts, which have their own names."""
        names, joined = self._renamed.names, self.architecture.files.fitted(self._renamed).joined
        slots = {
            tensor: tuple(replace(slot, name=names[slot.name]) for slot in slots)
            for tensor, slots in joined.slots.items()
            if slots[0].name in names
        }
        return Layout(slots, {tensor: joined.shapes[tensor] for tensor in slots})

    @cached_property
    def _parts(self) -> Mapping[str, Slot]:
        """The matrices of tensors that are parameters of their own, by live name.

        Raises `AlignmentError` for a part that the pool does not declare as a matrix.
        """
        divided = self.architecture.files.divided.slots
        parts: dict[str, Slot] = {}
        for joined, stored in self._renamed.names.items():
            matrices = {(s.start, s.stop): s for s in self._declared.slots.get(stored, ())}
            for part in divided.get(joined, ()):
                if (part.start, part.stop) not in matrices:
                    raise AlignmentError(
                        f"this method looks at the parts into which transformers divides {stored}, "
                        "but they are merged as one matrix",
                        hint="Use a method that looks at no live models.",
                    )
                parts[part.name] = matrices[part.start, part.stop]
        return parts
