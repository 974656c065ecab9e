"""Options of TIES."""

from typing import Annotated, Literal

from pydantic import Field

from fusion_core import ComponentConfig, ExpertWeights


class TrimConfig(ComponentConfig):
    """How much of each task vector is kept."""

    density: Annotated[float, Field(ge=0, le=1)] = 0.2
    """The fraction of each task vector's entries that is kept, the largest ones."""
    scope: Literal["model", "tensor"] = "model"
    """One threshold over a whole model, as the paper, or one a tensor, as mergekit."""


class ElectConfig(ComponentConfig):
    """Whose signs count, and where nobody's does."""

    scope: Literal["model", "tensor"] = "model"
    """Whose majority decides where entries cancel exactly: the whole model's, or a tensor's."""
    weights: ExpertWeights | None = None
    """One factor an expert in the election, by name or in pool order; default: 1 each."""
    zero_sign: Literal["majority", "positive"] = "majority"
    """The sign where entries cancel exactly: the whole scope's majority, or plus."""


class TiesConfig(ComponentConfig):
    """How much of each task vector is kept, and how what is kept is combined."""

    density: Annotated[float, Field(ge=0, le=1)] = 0.2
    """The fraction of each task vector's entries that is kept, the largest ones."""
    scale: float = 1.0
    """Lambda: the factor of the merged task vector."""
    scope: Literal["model", "tensor"] = "model"
    """One threshold over a whole model, as the paper, or one a tensor, as mergekit."""
    weights: ExpertWeights | None = None
    """One factor an expert, by name or in pool order; default: 1 each."""
    normalize: bool = True
    """The weighted mean over the experts that agree, as the paper; false: their sum."""
    zero_sign: Literal["majority", "positive"] = "majority"
    """The sign where trimmed entries cancel exactly: the whole scope's majority, or plus."""
