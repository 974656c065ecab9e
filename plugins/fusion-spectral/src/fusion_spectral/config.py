"""Options of the spectral methods."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fusion_core import ComponentConfig, PerExpert

Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Steps = Annotated[int, Field(ge=0)]


class MatrixConfig(ComponentConfig):
    """The tensors that count as matrices."""

    matrices: Literal["all", "stored", "none"] = "all"
    """Treat these tensors as matrices. `all`: all matrices, also convolutions and each matrix in a
    packed tensor. `stored`: only tensors that are stored as one matrix, as most authors' code does.
    `none`: no tensor; in `overrides`, this leaves out matrices such as embeddings."""


class OrthogonaliseConfig(MatrixConfig):
    """Options of `orthogonalise`."""

    rank_fraction: PerExpert[Fraction] | None = None
    """Keep this fraction of the min(m, n) singular components per expert; default: 1 / experts."""


class DisentangleConfig(MatrixConfig):
    """Options of `disentangle`."""

    directions: Literal["orthogonal", "isotropic"] | None = None
    """Return task vectors as `orthogonalise` or as `isotropise` does. Default: those whose sum, at
    the best of several scales, is closest to the experts on unlabeled examples."""
    scale: Positive | None = None
    """With `directions`: multiply the task vectors by this factor; default: 1."""
    samples: Annotated[int, Field(ge=1)] = 32
    """Number of unlabeled examples per task to choose by; a task with fewer gives all of them."""

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if self.directions is None and self.scale is not None:
            raise ValueError("scale needs directions: without them, both are chosen")
        return self


class TruncateConfig(MatrixConfig):
    """Options of `truncate`."""

    by: Literal["nuclear", "energy", "fraction"] = "nuclear"
    """Measure `keep` by the sum of singular values, the sum of their squares, or the number of
    nonzero ones."""
    keep: PerExpert[Fraction] = 0.4
    """Keep as few singular components as reach this fraction, at least one; with `fraction`, this
    share of them, rounded down."""
    rescale: bool = True
    """Scale the kept singular values to the sum of all (the nuclear norm)."""


class ProjectConfig(MatrixConfig):
    """Options of `project`."""

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Protect the largest directions of the experts before, up to this fraction of the sum of their
    singular values."""


class CoreSpaceConfig(ComponentConfig):
    """Options of `core-space`."""

    bases: Literal["both", "left"] = "both"
    """Use left and right singular vectors (Core Space), or only left ones (KnOTS)."""


class SvcConfig(MatrixConfig):
    """Options of `svc`."""

    alpha: Positive | None = None
    """Count every expert's agreement as at least this, so that singular values grow at most by the
    factor 1 / alpha; default: 1 / experts."""


class ScaleConfig(MatrixConfig):
    """The factor of the merge."""

    scale: float = 1.0
    """Multiply the merged task vector by this factor (lambda)."""


class IsotropiseConfig(MatrixConfig):
    """Options of `isotropise`."""

    common_fraction: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Take this fraction of the task vectors' directions from their sum; the experts share the
    rest."""


class IsoCtsConfig(IsotropiseConfig, ScaleConfig):
    """Options of `iso-cts`."""


class CartConfig(MatrixConfig):
    """Options of `cart`."""

    rank_fraction: PerExpert[Fraction] = 0.08
    """Keep this fraction of the nonzero singular components of each expert's difference from the
    average, at least one."""
    scale: float = 1.0
    """Multiply the sum of the low-rank differences by this factor (lambda)."""


class StarConfig(MatrixConfig):
    """Options of `star`."""

    keep: PerExpert[Fraction] = 0.4
    """Keep as few singular components as reach this fraction of a matrix's nuclear norm (eta)."""


class WudiConfig(MatrixConfig):
    """Options of `wudi`."""

    steps: Steps = 300
    """Take this many steps of Adam; fewer steps stay nearer to the sum."""
    lr: Positive = 1e-5
    """Adam's learning rate: about the distance that an entry moves per step."""


class AceConfig(MatrixConfig):
    """Options of `ace`."""

    epsilon: Positive = 1e-2
    """Add this to the diagonal of every expert's covariance, in absolute units."""
    threshold: Annotated[float, Field(ge=0)] = 0.3
    """Normalise the covariances and refine the spectrum if the heterogeneity of the experts' norms
    is above this."""
    rank_fraction: Fraction = 0.3
    """Keep this fraction of the refinement's nonzero singular components."""


class OrthomergeConfig(MatrixConfig):
    """Options of `orthomerge`."""

    residual_scale: float | None = None
    """Multiply the sum of the residuals by this factor; default: 1 / experts, their mean."""


class ResMergeConfig(ScaleConfig):
    """Options of `resmerge`."""

    rank: Annotated[int, Field(ge=1)] = 1
    """Count this many of a task vector's largest singular components as its head."""
    head_scale: Annotated[float, Field(ge=0)] = 0.2
    """Add the mean head with at most this norm, relative to the merged residual (rho)."""
    beta_min: Annotated[float, Field(ge=0)] = 0.7
    """Multiply the merged residual by its coherence to this power where experts agree."""
    beta_max: Annotated[float, Field(ge=0)] = 1.0
    """Multiply the merged residual by its coherence to this power where experts disagree."""

    @model_validator(mode="after")
    def _check_beta(self) -> Self:
        if self.beta_min > self.beta_max:
            raise ValueError("beta_min is above beta_max")
        return self


class KnotsConfig(ComponentConfig):
    """Options of `knots`."""

    density: PerExpert[Annotated[float, Field(ge=0, le=1)]] = 0.2
    """Keep this fraction of each expert's coordinates over the whole model, the largest ones."""
    scale: float = 1.0
    """Multiply the merged task vector by this factor (lambda)."""


class DogeConfig(MatrixConfig):
    """Options of `doge`."""

    scale: PerExpert[float] = 0.07
    """Scale each expert's task vector of a matrix to this norm (eta)."""
    density: PerExpert[Annotated[float, Field(ge=0, le=1)]] = 0.3
    """Keep this fraction of each expert's entries over all matrices, the largest ones."""
    subspace: Annotated[int, Field(ge=1)] = 6
    """Divide the joint rank of the task vectors by this: so many directions are shared, and the
    correction leaves them alone."""
    steps: Steps = 400
    """Take this many steps of Adam."""
    lr: Positive = 1e-4
    """Adam's learning rate: about the distance that an entry moves per step."""
