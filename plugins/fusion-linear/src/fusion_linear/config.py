"""Options of the linear methods."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from fusion_core import ComponentConfig, ExpertWeights


class SimpleAverageConfig(ComponentConfig):
    """No options."""


class WeightedAverageConfig(ComponentConfig):
    """Each expert's share."""

    weights: ExpertWeights | None = None
    """One factor an expert, by name or in pool order; default: 1 each."""
    normalize: bool = True
    """Divide by the sum of the weights."""


class TaskArithmeticConfig(ComponentConfig):
    """How far to go along the sum of the task vectors."""

    scale: float = 0.3
    """Lambda: the factor of the summed task vectors."""
    weights: ExpertWeights | None = None
    """One factor an expert, by name or in pool order; default: 1 each."""


class SlerpConfig(ComponentConfig):
    """How far to go along the arc between two models."""

    t: Annotated[float, Field(ge=0, le=1)] = 0.5
    """0 is the first model (the base, if there is one expert), 1 the second."""


class NuSlerpConfig(ComponentConfig):
    """How far to go along the arc between two experts, and what is one vector."""

    weights: ExpertWeights | None = None
    """One factor an expert, by name or in pool order; default: 1 each."""
    mode: Literal["flat", "row", "column"] = "flat"
    """What has a direction of its own: a tensor, each of its rows, or each of its columns."""


class MultiSlerpConfig(ComponentConfig):
    """Each expert's share of the direction and of the norm."""

    weights: ExpertWeights | None = None
    """One factor an expert, by name or in pool order; default: 1 each."""


class KarcherConfig(ComponentConfig):
    """Each expert's share of the mean, and how closely it is approached."""

    weights: ExpertWeights | None = None
    """One factor an expert, by name or in pool order; default: 1 each."""
    iterations: Annotated[int, Field(ge=0)] = 10
    """Most steps towards the mean."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-5
    """The length of a step, an angle in radians, that is the last one."""


class ModelStockConfig(ComponentConfig):
    """What has a ratio of its own."""

    scope: Literal["model", "tensor"] = "tensor"
    """One ratio for a whole model, or one a tensor."""


class MetaGptConfig(ComponentConfig):
    """No options."""


class PassthroughConfig(ComponentConfig):
    """Which model is copied."""

    model: Annotated[str, Field(examples=["base"])]
    """An expert's name, or `base`."""


class Slice(ComponentConfig):
    """Some layers of a model."""

    model: str
    """An expert's name, or `base`."""
    layers: tuple[Annotated[int, Field(ge=0)], int]
    """From this one on, and up to that one, which is left out: [0, 24] are the first 24."""

    @field_validator("layers")
    @classmethod
    def _check_order(cls, layers: tuple[int, int]) -> tuple[int, int]:
        if layers[0] >= layers[1]:
            raise ValueError(f"{list(layers)} has no layers: the second number is left out")
        return layers


class StackConfig(ComponentConfig):
    """Which layers of which models follow each other."""

    slices: tuple[Slice, ...] = Field(
        examples=["[{model: latin, layers: [0, 3]}, {model: greek, layers: [1, 4]}]"]
    )
    """Mappings of `model` (an expert's name, or `base`) and `layers`, half-open like Python's
    ranges: [0, 24] are the first 24."""

    @field_validator("slices")
    @classmethod
    def _check_count(cls, slices: tuple[Slice, ...]) -> tuple[Slice, ...]:
        if not slices:
            raise ValueError("nothing is stacked: name at least one model and its layers")
        return slices


class NearswapConfig(ComponentConfig):
    """How far the base may move."""

    t: Annotated[float, Field(ge=0)] = 0.0001
    """The largest difference from the base that an entry may have."""


class ArceeFusionConfig(ComponentConfig):
    """No options."""


class NormaliseConfig(ComponentConfig):
    """Whose norms are made equal."""

    scope: Literal["model", "tensor"] = "model"
    """The norm of a whole task vector, or one a tensor."""


class DepthScaleConfig(ComponentConfig):
    """The factors of task vectors from the first layer to the last."""

    scales: Annotated[tuple[float, ...], Field(min_length=1)] = (0.5, 1.0, 1.5)
    """Factors at even distances of depth."""
    mode: Literal["tiers", "curve"] = "tiers"
    """As many tiers of layers as there are factors, or straight lines between them."""


class LinesConfig(ComponentConfig):
    """The factors of the merged task vector in the first layer and in the last."""

    alpha: float | None = None
    """The factor of the first layer, and of what is in no layer; default: that of the experts'
    mean, by the L1 norm."""
    beta: float = 0.5
    """What the last layer's factor has more."""


class RescaleNormConfig(ComponentConfig):
    """Whose norm is restored."""

    scope: Literal["model", "tensor"] = "model"
    """The norm of a whole task vector, or one a tensor."""
