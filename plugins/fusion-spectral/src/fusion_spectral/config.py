"""Options of the spectral methods."""

from typing import Annotated, Literal

from pydantic import Field

from fusion_core import ComponentConfig

Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Steps = Annotated[int, Field(ge=0)]


class OrthogonaliseConfig(ComponentConfig):
    """How much of each task vector is kept."""

    rank_fraction: Fraction | None = None
    """The fraction of min(m, n) singular components kept of each expert; default: 1 / experts."""


class TruncateConfig(ComponentConfig):
    """How many singular components are kept, and whether the others' mass is made up for."""

    by: Literal["nuclear", "energy", "fraction"] = "nuclear"
    """What `keep` is a fraction of: the sum of singular values, that of their squares, or the
    number of those that are not zero."""
    keep: Fraction = 0.4
    """The fraction that the components kept must reach; at least one is kept."""
    rescale: bool = True
    """Scale what is kept to the nuclear norm (the sum of singular values) of the whole."""


class CoreSpaceConfig(ComponentConfig):
    """In which bases coordinates are taken."""

    bases: Literal["both", "left"] = "both"
    """Left and right singular vectors (Core Space), or left ones alone (KnOTS)."""


class SvcConfig(ComponentConfig):
    """How far a singular value may be raised."""

    alpha: Positive | None = None
    """The smallest response of an expert that is counted: 1 / alpha bounds what a singular value is
    multiplied by; default: 1 / experts."""


class ScaleConfig(ComponentConfig):
    """How far the merge goes."""

    scale: float = 1.0
    """Lambda: the factor of the merged task vector."""


class IsoCtsConfig(ScaleConfig):
    """How many directions are the sum's, and how far the merge goes."""

    common_fraction: Annotated[float, Field(ge=0, le=1)] = 0.8
    """The fraction of the task vectors' directions taken from the sum; the experts share the
    others."""


class CartConfig(ComponentConfig):
    """How much of each expert's difference from the average is kept, and its factor."""

    rank_fraction: Fraction = 0.08
    """The fraction kept of the singular components, not zero, of each expert's difference from the
    average; at least one is kept."""
    scale: float = 1.0
    """Lambda: the factor of the sum of what is kept."""


class StarConfig(ComponentConfig):
    """How much of each task vector is kept."""

    keep: Fraction = 0.4
    """The fraction of a matrix's nuclear norm that the components kept must reach (eta)."""


class WudiConfig(ComponentConfig):
    """How long the descent is, and its steps."""

    steps: Steps = 300
    """Steps of Adam; their number is the regularisation."""
    lr: Positive = 1e-5
    """Adam's rate: about how far an entry moves in a step."""


class AceConfig(ComponentConfig):
    """Regularisation, and when experts count as heterogeneous."""

    epsilon: Positive = 1e-2
    """What is added to the diagonal of every expert's covariance; not relative to it."""
    threshold: Annotated[float, Field(ge=0)] = 0.3
    """Heterogeneity of the experts' norms above which covariances are normalised and the spectrum
    refined."""
    rank_fraction: Fraction = 0.3
    """The fraction of the singular components that are not zero in the refinement."""


class OrthomergeConfig(ComponentConfig):
    """How what is not a rotation is merged."""

    residual_scale: float | None = None
    """The factor of the sum of the residuals; default: 1 / experts, their mean."""


class KnotsConfig(ComponentConfig):
    """How much of the coordinates is kept, and how far the merge goes."""

    density: Annotated[float, Field(ge=0, le=1)] = 0.2
    """The fraction of each expert's coordinates that is kept, over the whole model."""
    scale: float = 1.0
    """Lambda: the factor of the merged task vector."""


class DogeConfig(ComponentConfig):
    """How the shared correction is learned, and what is kept."""

    scale: float = 0.07
    """Eta: a matrix's task vector counts with this, divided by its norm."""
    density: Annotated[float, Field(ge=0, le=1)] = 0.3
    """The fraction of each expert's entries that is kept, over all matrices."""
    subspace: Annotated[int, Field(ge=1)] = 6
    """The shared subspace, which the correction leaves alone, has as many directions as the task
    vectors' joint rank divided by this."""
    steps: Steps = 400
    """Steps of Adam."""
    lr: Positive = 1e-4
    """Adam's rate."""
