"""Weights in memory: a state dict as a source."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fusion_core.errors import WeightsError
from fusion_core.weights.source import TensorInfo, WeightSource


class StateDictSource(WeightSource):
    """A state dict in memory; its tensors are read where they are and never modified."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], *, label: str = "state dict") -> None:
        """Raise `WeightsError` for anything but plain dense tensors by name."""
        _check_mapping(tensors, label)
        for name, tensor in tensors.items():
            if (found := _unreadable(tensor)) is not None:
                what, hint = found
                raise WeightsError(f"{label}: {name!r} is {what}", hint=hint)
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


def _check_mapping(tensors: object, label: str) -> None:
    if not isinstance(tensors, Mapping):
        raise WeightsError(f"{label}: expected a state dict, got a {type(tensors).__name__}")
    for name in tensors:
        if not isinstance(name, str):
            raise WeightsError(
                f"{label}: expected tensors by name, got the key {name!r} of type "
                f"{type(name).__name__}",
                hint="Give what state_dict() of a module returns: {'layer.weight': tensor, ...}.",
            )


def _unreadable(value: object) -> tuple[str, str | None] | None:
    """Say what a value is that is not plain numbers, and what to do; None for one that is."""
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}, not a tensor", _remedy(value)
    if value.is_meta:
        return "on the meta device, without values", "Load the weights before merging."
    wrapped = type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    if value.is_quantized or wrapped:  # classes that compute in place of torch's own, too
        kind = type(value).__name__ if wrapped else str(value.dtype)
        return f"a {kind}, which only stands for numbers", (
            "Give plain tensors: dequantize() what is quantised, full_tensor() what is distributed."
        )
    if value.layout is not torch.strided:
        return f"a tensor of layout {value.layout}", "Give a dense one: tensor.to_dense()."
    if value.is_complex():
        return f"{value.dtype}", "Methods merge real numbers: give torch.view_as_real(tensor)."
    return None


def _remedy(value: object) -> str | None:
    if isinstance(value, Mapping):
        return "State dicts are flat: give the inner one, e.g. checkpoint['model']."
    if hasattr(value, "__array__"):
        return "Give a tensor: torch.from_numpy(array)."
    return "Leave out what is not a weight."


def held_in_memory(source: WeightSource) -> WeightSource | None:
    """Return a source that a source reads from and that exists only in this process, if any."""
    if isinstance(source, StateDictSource):
        return source
    return next(filter(None, map(held_in_memory, source.sources)), None)
