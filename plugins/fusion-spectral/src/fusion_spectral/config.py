"""Options of the spectral methods."""

from typing import Annotated

from pydantic import Field

from fusion_core import ComponentConfig


class OrthogonaliseConfig(ComponentConfig):
    """How much of each task vector is kept."""

    rank_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """The fraction of a matrix's singular components kept of each expert; default: 1 / experts."""


class SvcConfig(ComponentConfig):
    """How far a singular value may be raised."""

    alpha: Annotated[float, Field(gt=0)] | None = None
    """The smallest response of an expert that is counted: 1 / alpha bounds what a singular value is
    multiplied by; default: 1 / experts."""
