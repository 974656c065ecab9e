"""Matrices that share one parameter of a live model, such as the packed experts of a mixture.

Since transformers 5 the experts of a mixture are slices of one parameter. An operand of a product
is a view of it. The address of a view tells the expert, and its strides tell which dimension is
multiplied.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from fusion_adapting._live import group_tied_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core.weights import Layout, Slot


class PackedLayer(NamedTuple):
    """A matrix in a parameter that the model multiplies inputs by, like a linear layer."""

    #: the matrix's name
    name: str
    #: the dimension of the matrix along which its inputs are
    dim: int


def is_packed(shape: Sequence[int], slots: Sequence[Slot]) -> bool:
    """Return whether a tensor with these matrices is a batch of them, such as packed experts."""
    if not slots or len(shape) != 3 or min(shape[1:]) < 2:  # noqa: PLR2004 - experts, rows, columns
        return False
    size = shape[1] * shape[2]
    are_matrices = all(len(slot.shape) == 2 for slot in slots)  # noqa: PLR2004
    return are_matrices and all((slot.stop - 1) // size == slot.start // size for slot in slots)


class PackedWeights:
    """The parameters of a live model that hold a batch of matrices, and products with them."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], layout: Layout) -> None:
        """`parameters` are those of the model that count, by tensor name."""
        self._names = group_tied_names(parameters)
        self._layout = layout
        self._parameters = [
            _PackedParameter(parameter, layout.slots[names[0]])
            for parameter, names in self._names.items()
            if is_packed(parameter.shape, layout.slots.get(names[0], ()))
            and parameter.is_contiguous()
        ]
        self._parameters.sort(key=lambda packed: packed.start)
        self._starts = [packed.start for packed in self._parameters]

    def __bool__(self) -> bool:
        return bool(self._parameters)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters."""
        return [packed.parameter for packed in self._parameters]

    @property
    def matrices(self) -> dict[str, Tensor]:
        """Views of all matrices by name, as `Slot.view` returns them."""
        return {
            slot.name: slot.view(parameter.detach().view(-1)[slot.start : slot.stop])
            for parameter in self.parameters
            for name in self._names[parameter]
            for slot in self._layout.slots[name]
        }

    @property
    def tied_names(self) -> dict[str, list[str]]:
        """All names of every matrix by its first name; those of tied parameters have several."""
        return {
            first.name: [first.name, *(twin.name for twin in twins)]
            for packed in self._parameters
            for first, *twins in zip(
                *(self._layout.slots[name] for name in self._names[packed.parameter]), strict=True
            )
        }

    @property
    def not_understood(self) -> set[str]:
        """The first names of matrices whose inputs are not, or not all, known."""
        return {
            slot.name
            for packed in self._parameters
            if not packed.is_understood
            for slot in packed.slots
        }

    def owner_of(self, operand: Any) -> _PackedParameter | None:  # noqa: ANN401 - any argument
        """Return the parameter that a tensor is a view of."""
        if not isinstance(operand, Tensor) or operand.layout is not torch.strided:
            return None
        address = operand.data_ptr()
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self._parameters[index].stop:
            return None
        owner = self._parameters[index]
        return owner if owner.parameter.device == operand.device else None


class _PackedParameter:
    """A parameter of shape (experts, ...), and what its products have shown."""

    def __init__(self, parameter: nn.Parameter, slots: Sequence[Slot]) -> None:
        self.parameter = parameter
        self.slots = slots
        self.start = parameter.data_ptr()
        self.stop = self.start + parameter.nbytes
        self.is_understood = True
        #: the dimension along which inputs are, and by expert: layers with their ranges of outputs
        self._axis = 0
        self._layers: dict[int, list[tuple[PackedLayer, range]]] = {}

    def layers_of(self, operand: Tensor, contracted: int) -> list[PackedLayer]:
        """Return the layers in an operand of two dimensions, a view of one expert.

        `contracted` is the dimension along which the operand is multiplied. The parameter is no
        longer understood if the operand is not a whole range of some matrices' outputs.
        """
        stride, sizes = self.parameter.stride(), self.parameter.shape
        offset = (operand.data_ptr() - self.start) // operand.element_size()
        expert, offset = divmod(offset, stride[0])
        corner = (0, *divmod(offset, stride[1]))
        axis = 1 if operand.stride(contracted) == stride[1] else 2
        outputs = 3 - axis
        is_range_of_outputs = (
            operand.stride(contracted) == stride[axis]
            and operand.shape[contracted] == sizes[axis]
            and corner[axis] == 0
            and operand.stride(1 - contracted) == stride[outputs]
            and axis == (self._axis or axis)
        )
        if not is_range_of_outputs:
            self.is_understood = False
            return []
        if not self._axis:
            self._axis = axis
            self._layers = self._find_layers(axis)
        first, stop = corner[outputs], corner[outputs] + operand.shape[1 - contracted]
        overlapping = [
            (layer, indices)
            for layer, indices in self._layers.get(expert, [])
            if indices.start < stop and indices.stop > first
        ]
        if any(indices.start < first or indices.stop > stop for _, indices in overlapping):
            self.is_understood = False
            return []
        return [layer for layer, _ in overlapping]

    def _find_layers(self, axis: int) -> dict[int, list[tuple[PackedLayer, range]]]:
        """Return the layers by expert, if every matrix has all inputs along `axis`."""
        layers: dict[int, list[tuple[PackedLayer, range]]] = {}
        for slot in self.slots:
            layer = _layer_of(slot, self.parameter, axis)
            if layer is None:
                self.is_understood = False
                return {}
            layers.setdefault(slot.start // self.parameter.stride(0), []).append(layer)
        return layers


def _layer_of(slot: Slot, parameter: nn.Parameter, axis: int) -> tuple[PackedLayer, range] | None:
    """Return a matrix as a layer with inputs along `axis`, and its range of outputs."""
    stride, width = parameter.stride(), parameter.shape[axis]
    view = slot.view(torch.empty(slot.stop - slot.start, device="meta"))
    offset = slot.start % stride[0] + int(view.storage_offset())
    corner = (0, *divmod(offset, stride[1]))
    axes = [(n, step) for n, step in zip(view.shape, view.stride(), strict=True) if n > 1]
    inputs = (width, stride[axis])
    if axes.count(inputs) != 1 or inputs not in {axes[0], axes[-1]} or corner[axis]:
        return None
    dim = 0 if axes[0] == inputs and slot.shape[0] == width else 1
    others = axes[1:] if dim == 0 else axes[:-1]
    last = sum((n - 1) * step for n, step in others) // stride[3 - axis]
    first = corner[3 - axis]
    if slot.shape[dim] != width:
        return None
    return PackedLayer(slot.name, dim), range(first, first + last + 1)
