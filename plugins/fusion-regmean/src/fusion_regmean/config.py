"""Options of the methods that merge in closed form from unlabeled data."""

from typing import Annotated, Literal

from pydantic import Field

from fusion_core import ComponentConfig, ExpertWeights


class SamplesConfig(ComponentConfig):
    """The amount of data."""

    samples: Annotated[int, Field(ge=1)] = 256
    """Use this many unlabeled examples per task."""


class RegMeanConfig(SamplesConfig):
    """Options of `regmean` and `regmean-plus-plus`."""

    off_diagonal: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Multiply the off-diagonal entries of moments by this: 1 is plain least squares, 0 treats
    inputs as independent."""
    ridge: Annotated[float, Field(ge=0)] = 1e-6
    """Pull weights towards the experts' mean, with this fraction of the mean of a moment's
    diagonal. Where inputs never vary, only this pull determines the weights."""


class FisherConfig(SamplesConfig):
    """Options of `fisher`."""

    labels: Literal["auto", "exact", "sampled"] = "auto"
    """Take the expectation over these labels. exact: all classes, with one backward pass per
    example and class. sampled: one label per example, drawn from the expert's predictions, with one
    backward pass per example. auto: exact for up to 16 classes, otherwise sampled."""
    floor: Annotated[float, Field(gt=0)] = 1e-6
    """Raise the information of every parameter to at least this."""
    normalize: bool = True
    """Divide each expert's information by its norm over the merged parameters, without those of
    `skip`, so that a more confident expert does not count more."""
    weights: ExpertWeights | None = None
    """One factor per expert, by name or as a list in pool order, none negative; default: 1 each."""


class FeatCalConfig(SamplesConfig):
    """Options of `featcal`."""

    ridge: Annotated[float, Field(gt=0)] = 0.05
    """Pull towards the anchor, in units of one expert's moments."""
    anchor: float = 2.0
    """Place the anchor at base + anchor * (merge - base)."""
    teacher: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of the expert's own inputs, rather than the merge's, in the target of a layer."""


class LotConfig(SamplesConfig):
    """Options of `lot`."""

    samples: Annotated[int, Field(ge=1)] = 64
    """Use this many unlabeled examples per task."""
    scale: float = 1.2
    """Multiply the merged task vector by this factor."""


class CatConfig(SamplesConfig):
    """Options of `cat`."""

    samples: Annotated[int, Field(ge=1)] = 16
    """Use this many unlabeled examples per task."""
    directions: Annotated[int, Field(ge=0)] = 4
    """Protect at most this many directions of each matrix, or entries of each vector, per task."""
    penalty: Annotated[float, Field(ge=0)] = 5.0
    """Weigh the loss of the other tasks by this against the gain of the protected task."""
    scale: float = 0.4
    """Multiply the sum of the trimmed task vectors by this factor."""
