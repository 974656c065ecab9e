"""A state dict in memory as a source of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.parameter import is_lazy

from fusion_core.errors import WeightsError
from fusion_core.weights.source import TensorInfo, WeightSource, walk


class StateDictSource(WeightSource):
    """A state dict in memory. Its tensors are read in place and never modified."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], *, label: str = "state dict") -> None:
        """Raise `WeightsError` for anything but plain dense tensors by name."""
        _check_mapping(tensors, label)
        for name, tensor in tensors.items():
            if (problem := _describe_problem(tensor)) is not None:
                description, hint = problem
                raise WeightsError(f"{label}: {name!r} is {description}", hint=hint)
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self._label = label
        self.infos = {
            name: TensorInfo(name, tuple(tensor.shape), tensor.dtype)
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return a view into the state dict."""
        return self._tensors[name].reshape(-1)[start:stop].cpu()

    def describe(self) -> str:
        """Return the label given at construction."""
        return self._label


def find_in_memory_source(source: WeightSource) -> WeightSource | None:
    """Return the source, or one it reads from, that exists only in this process; None without."""
    return next((part for part in walk(source) if isinstance(part, StateDictSource)), None)


def _check_mapping(tensors: object, label: str) -> None:
    if not isinstance(tensors, Mapping):
        raise WeightsError(f"{label}: expected a state dict, got a {type(tensors).__name__}")
    for name in tensors:
        if not isinstance(name, str):
            raise WeightsError(
                f"{label}: expected tensors by name, got the key {name!r} of type "
                f"{type(name).__name__}",
                hint="Give the result of a module's state_dict(): {'layer.weight': tensor, ...}.",
            )


def _describe_problem(value: object) -> tuple[str, str] | None:
    """Describe a value that is not plain dense numbers, with a hint; None for one that is."""
    if not isinstance(value, torch.Tensor):
        hint = "Leave out entries that are not weights."
        if isinstance(value, Mapping):
            hint = "State dicts are flat: give the inner one, e.g. checkpoint['model']."
        elif hasattr(value, "__array__"):
            hint = "Give a tensor: torch.from_numpy(array)."
        return f"a {type(value).__name__}, not a tensor", hint
    if is_lazy(value) or value.is_meta:
        kind = "a lazy parameter" if is_lazy(value) else "on the meta device"
        hint = "Load the weights, or run a module with lazy layers once, before merging."
        return f"{kind}, without values", hint
    is_wrapped = type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    if value.is_quantized or is_wrapped:  # including classes that replace torch's computations
        kind = type(value).__name__ if is_wrapped else str(value.dtype)
        return f"a {kind}, which holds no plain numbers", (
            "Give plain tensors: dequantize() quantised ones, full_tensor() distributed ones."
        )
    if value.layout is not torch.strided:
        return f"a tensor of layout {value.layout}", "Give a dense one: tensor.to_dense()."
    if value.is_complex():
        return f"{value.dtype}", "Methods merge real numbers: give torch.view_as_real(tensor)."
    return None
