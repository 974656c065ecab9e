"""The dtypes of a merge's tensors, known from headers: as computed and as stored."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.outline import Outline
    from fusion_core.weights import TensorInfo


def describe_stored(outline: Outline, dtype: torch.dtype | None) -> dict[str, TensorInfo]:
    """Describe a merge's tensors as stored: in `dtype`, or by default in the models' dtypes."""
    return {
        name: info if dtype is None else _with_float_dtype(info, dtype)
        for name, info in outline.infos.items()
    }


def infos_of_merge(
    outline: Outline, pool: ModelPool[Any], stored: torch.dtype | None
) -> dict[str, TensorInfo]:
    """Describe a merge's tensors as computed.

    That is in `stored` if given, else in fp64 if any operand has that dtype, else in fp32.
    """
    operands = [outline.infos, *(source.infos for source in pool.by_name.values())]

    def computed(name: str) -> torch.dtype:
        dtypes = (infos[name].dtype for infos in operands if name in infos)
        return torch.float64 if torch.float64 in dtypes else torch.float32

    return {
        name: _with_float_dtype(info, stored or computed(name))
        for name, info in outline.infos.items()
    }


def _with_float_dtype(info: TensorInfo, dtype: torch.dtype) -> TensorInfo:
    return replace(info, dtype=dtype) if info.dtype.is_floating_point else info
