"""Options of the linear methods."""

from collections.abc import Mapping
from numbers import Real
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from fusion_core import ComponentConfig, ExpertWeights


class WeightsConfig(ComponentConfig):
    """The weights of the experts."""

    weights: ExpertWeights | None = None
    """One factor per expert, by name or as a list in pool order; default: 1 each."""


class SimpleAverageConfig(ComponentConfig):
    """No options."""


class WeightedAverageConfig(WeightsConfig):
    """Options of `weighted-average`."""

    normalize: bool = True
    """Divide by the sum of the weights."""


class TaskArithmeticConfig(ComponentConfig):
    """Options of `task-arithmetic`."""

    scale: float = 0.3
    """Multiply the sum of the task vectors by this factor (lambda)."""
    weights: ExpertWeights | None = None
    """One factor per expert, by name or as a list in pool order; default: 1 each."""


class SlerpConfig(ComponentConfig):
    """Options of `slerp`."""

    t: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Position on the arc: 0 is the first model (the base if there is one expert), 1 the second."""


class NuSlerpConfig(WeightsConfig):
    """Options of `nuslerp`."""

    mode: Literal["flat", "row", "column"] = "flat"
    """Treat as one vector: the whole tensor (flat), each of its rows, or each of its columns."""


class MultiSlerpConfig(WeightsConfig):
    """Options of `multi-slerp`."""

    normalize: bool = True
    """Divide the weights by their sum."""


class KarcherConfig(WeightsConfig):
    """Options of `karcher`."""

    iterations: Annotated[int, Field(ge=0)] = 10
    """Take at most this many steps towards the mean."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-5
    """Stop after a step shorter than this angle, in radians."""


#: The quantity whose mean over pairs of experts gives the ratio.
PairMean = Literal["cosines", "angles"]


class ModelStockConfig(ComponentConfig):
    """Options of `model-stock`."""

    scope: Literal["model", "tensor", "row"] = "tensor"
    """Compute one ratio for the whole model, one per tensor, or one per row of the last dimension
    (the paper's filters). A row of a convolution is an output channel."""
    mean_of: PairMean = "cosines"
    """Compute the ratio from the mean cosine of pairs of experts (mergekit), or from the cosine of
    their mean angle (FusionBench). For two experts both are the same."""


class MetaGptConfig(ComponentConfig):
    """No options."""


class PassthroughConfig(ComponentConfig):
    """Options of `passthrough`."""

    model: Annotated[str, Field(examples=["base"])]
    """Copy this model: an expert's name, or `base`."""


#: A factor, or factors by patterns on tensor names.
Scale = Annotated[
    Annotated[float, Tag("[one]")]
    | Annotated[dict[Annotated[str, Field(min_length=1)], float], Tag("[by pattern]")],
    Discriminator(
        lambda value: (
            "[by pattern]"
            if isinstance(value, Mapping)
            else "[one]"
            if isinstance(value, Real)
            else None
        ),
        custom_error_type="scale",
        custom_error_message="expected a number, or numbers by pattern: {'*.o_proj.*': 0.5}",
    ),
]


class Slice(ComponentConfig):
    """A range of one model's layers."""

    model: str
    """Take layers of this model: an expert's name, or `base`."""
    layers: tuple[Annotated[int, Field(ge=0)], int]
    """Take the layers from the first number up to, but not including, the second: [0, 24] are the
    first 24."""
    scale: Scale = 1.0
    """Multiply the slice's tensors by this factor, or those that match a pattern by the factor of
    the first match: {"*.o_proj.*": 0.5}. The first slice includes the tensors before the layers,
    the last slice all others outside of them."""
    unmatched: Literal["error", "warn"] = "error"
    """Refuse patterns of `scale` that match no tensor, or warn of them."""

    @field_validator("layers")
    @classmethod
    def _check_order(cls, layers: tuple[int, int]) -> tuple[int, int]:
        if layers[0] >= layers[1]:
            raise ValueError(f"{list(layers)} selects no layers: the second number is excluded")
        return layers


class StackConfig(ComponentConfig):
    """Options of `stack`."""

    slices: tuple[Slice, ...] = Field(
        examples=["[{model: latin, layers: [0, 3]}, {model: greek, layers: [1, 4]}]"]
    )
    """Stack these slices in order: a list of {model: NAME, layers: [FROM, TO], scale: FACTOR}, TO
    excluded."""

    @field_validator("slices")
    @classmethod
    def _check_count(cls, slices: tuple[Slice, ...]) -> tuple[Slice, ...]:
        if not slices:
            raise ValueError("expected at least one slice, with a model and its layers")
        return slices


class NearswapConfig(ComponentConfig):
    """Options of `nearswap`."""

    t: Annotated[float, Field(ge=0)] = 0.0001
    """Move every entry of the base by at most this much, in the units of the weights."""


class ArceeFusionConfig(ComponentConfig):
    """No options."""


class NormaliseConfig(ComponentConfig):
    """Options of `normalise`."""

    scope: Literal["model", "tensor"] = "model"
    """Compare the norms of whole task vectors, or the norms within each tensor."""


class DepthScaleConfig(ComponentConfig):
    """Options of `depth-scale`."""

    scales: Annotated[tuple[float, ...], Field(min_length=1)] = (0.5, 1.0, 1.5)
    """Factors from the first layer to the last, evenly spaced."""
    mode: Literal["tiers", "curve"] = "tiers"
    """Split the layers into one tier per factor, or interpolate linearly between the factors."""


class LinesConfig(ComponentConfig):
    """Options of `lines`."""

    alpha: float | None = None
    """Factor of the first layer and of tensors in no layer; default: the factor that gives them the
    L1 norm of the experts' mean."""
    beta: float = 0.5
    """Add this to alpha from the first layer to the last, linearly: the last factor is their
    sum."""


class RescaleNormConfig(ComponentConfig):
    """Options of `rescale-norm`."""

    scope: Literal["model", "tensor"] = "model"
    """Restore the norm of the whole task vector, or the norm within each tensor."""
