"""Options of AdaMerging."""

from typing import Annotated, Literal

from pydantic import Field

from fusion_core.config import ComponentConfig


class AdaMergingConfig(ComponentConfig):
    """What is learned, and how the search goes."""

    granularity: Literal["layer", "task"] = "layer"
    """One coefficient an expert and parameter tensor, or one an expert."""
    steps: Annotated[int, Field(ge=0)] = 100
    """Updates of the coefficients."""
    lr: Annotated[float, Field(gt=0)] = 0.01
    """Adam's learning rate: about how far a coefficient moves in a step."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on: down to zero along a cosine, or not at all."""
    init: float = 0.3
    """Every coefficient's first value: task arithmetic's scale."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Unlabeled examples of each task in a step."""
    clamp: bool = False
    """Keep coefficients within [0, 1]."""
    coefficients: str | None = None
    """A coefficients.json of an earlier run: use it and skip the search."""
