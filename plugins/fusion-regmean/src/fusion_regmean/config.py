"""Options of the methods that merge in closed form from unlabeled data."""

from typing import Annotated, Literal

from pydantic import Field

from fusion_core import ComponentConfig, ExpertWeights


class SamplesConfig(ComponentConfig):
    """What is looked at."""

    samples: Annotated[int, Field(ge=1)] = 256
    """Unlabeled examples of each expert's task."""


class RegMeanConfig(SamplesConfig):
    """What is looked at, and how much of it is believed."""

    off_diagonal: Annotated[float, Field(ge=0, le=1)] = 0.9
    """What moments beside the diagonal are multiplied by: 1 is plain least squares, 0 weighs every
    input by itself."""
    ridge: Annotated[float, Field(ge=0)] = 1e-6
    """Pull towards the experts' mean, as a fraction of the mean of a moment's diagonal: decides
    where inputs never vary."""


class FisherConfig(SamplesConfig):
    """What is looked at, and how experts weigh."""

    labels: Literal["auto", "exact", "sampled"] = "auto"
    """Labels that the expectation is taken over: every class (`exact`, one backward pass per
    example and class), one label per example drawn from the expert's predictions (`sampled`, one
    backward pass per example), or exact for up to 16 classes (`auto`)."""
    floor: Annotated[float, Field(gt=0)] = 1e-6
    """The smallest information that a parameter is taken to have."""
    normalize: bool = True
    """Divide each expert's information by its norm over the model, so that a model that is surer of
    itself weighs no more."""
    weights: ExpertWeights | None = None
    """One factor an expert, by name or in pool order, none of them negative; default: 1 each."""


class FeatCalConfig(SamplesConfig):
    """What is looked at, and how near to the merge the calibrated model stays."""

    ridge: Annotated[float, Field(gt=0)] = 0.05
    """Pull towards the anchor, in units of one expert's moments."""
    anchor: float = 2.0
    """Where the anchor is: base + anchor * (merge - base)."""
    teacher: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of what a layer is given in the expert, and not in the merge, in what it is to make."""


class LotConfig(SamplesConfig):
    """What is looked at, and how far to go."""

    samples: Annotated[int, Field(ge=1)] = 64
    """Unlabeled examples of each expert's task."""
    scale: float = 1.2
    """What the merged task vector is multiplied by."""


class CatConfig(SamplesConfig):
    """What is looked at, and what is taken away."""

    samples: Annotated[int, Field(ge=1)] = 16
    """Unlabeled examples of each expert's task."""
    directions: Annotated[int, Field(ge=0)] = 4
    """Directions of each matrix, or entries of each vector, that a task keeps free of others."""
    penalty: Annotated[float, Field(ge=0)] = 5.0
    """How much what the others lose counts against what a task is spared."""
    scale: float = 0.4
    """What the sum of trimmed task vectors is multiplied by."""
