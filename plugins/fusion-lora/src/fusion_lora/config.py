"""The options of `output.adapter`; this module does not import torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fusion_core import ComponentConfig, Dtype


class AdapterConfig(ComponentConfig):
    """The form of a merge that stays an adapter."""

    rank: Annotated[int, Field(ge=1)] | None = None
    """The rank of every module; default: the ranks of the experts added up, which loses nothing if
    the method adds or averages."""
    dtype: Dtype = "float32"
    """The dtype of the factors."""
