"""Options of the sparsifying and sign-electing methods."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fusion_core import ComponentConfig, ExpertWeights, PerExpert

Fraction = Annotated[float, Field(ge=0, le=1)]


#: One fraction for all experts, or one per expert.
Fractions = PerExpert[Fraction]


def _pairs(first: Any, second: Any) -> list[tuple[float, float]]:  # noqa: ANN401 - of Fractions
    """Return the values of two options that belong to one expert."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return [(first[name], second[name]) for name in first if name in second]
    one, other = (
        [*value.values()] if isinstance(value, Mapping) else value for value in (first, second)
    )
    if isinstance(one, int | float):
        return [(one, value) for value in ([other] if isinstance(other, int | float) else other)]
    if isinstance(other, int | float):
        return [(value, other) for value in one]
    return [*zip(one, other, strict=False)]


def values_of(option: PerExpert[float]) -> list[float]:
    """Return the values of an option per expert, without names."""
    if isinstance(option, int | float):
        return [option]
    return [*(option.values() if isinstance(option, Mapping) else option)]


class TrimConfig(ComponentConfig):
    """Options of `trim`."""

    density: Fractions = 0.2
    """Keep this fraction of each task vector's entries, the largest ones."""
    scope: Literal["model", "tensor"] = "model"
    """Use one threshold for the whole model (the paper), or one per tensor (mergekit)."""


class ElectConfig(ComponentConfig):
    """Options of `elect`."""

    scope: Literal["model", "tensor"] = "model"
    """Count the majority sign over the whole model, or within each tensor."""
    weights: ExpertWeights | None = None
    """One factor per expert in the election, by name or as a list in pool order; default: 1 each.
    With a negative one, the expert's entries are kept where the opposite sign is elected."""
    zero_sign: Literal["majority", "positive"] = "majority"
    """Sign of entries that cancel exactly: the majority sign of the scope, or plus."""


class TiesConfig(ComponentConfig):
    """Options of `ties`."""

    density: Fractions = 0.2
    """Keep this fraction of each task vector's entries, the largest ones."""
    scale: float = 1.0
    """Multiply the merged task vector by this factor (lambda)."""
    scope: Literal["model", "tensor"] = "model"
    """Use one threshold for the whole model (the paper), or one per tensor (mergekit)."""
    weights: ExpertWeights | None = None
    """One factor per expert, by name or as a list in pool order; default: 1 each."""
    normalize: bool = True
    """Average the experts that agree, by weight (the paper); false: sum them."""
    zero_sign: Literal["majority", "positive"] = "majority"
    """Sign of trimmed entries that cancel exactly: the majority sign of the scope, or plus."""
    rescale: Literal["none", "l1"] = "none"
    """Keep trimmed task vectors as they are (none), or scale each to its sum of magnitudes before
    trimming, within the scope (l1). l1 needs `zero_sign: positive`."""

    @model_validator(mode="after")
    def _check_sign(self) -> Self:
        if self.rescale == "l1" and self.zero_sign == "majority":
            raise ValueError(
                "rescale: l1 changes the majority that zero_sign asks for; set zero_sign: positive"
            )
        return self


class DropConfig(ComponentConfig):
    """Options of `drop`."""

    density: Fractions = 0.5
    """Keep each entry with this probability."""
    rescale: Literal["paper", "l1", "none"] = "paper"
    """Divide kept entries by the density, restore each tensor's sum of magnitudes (l1), or keep
    them as they are (none)."""


class MagPruneConfig(ComponentConfig):
    """Options of `magprune`."""

    density: Fractions = 0.5
    """Keep entries with this probability on average."""
    epsilon: Fractions = 0.15
    """Keep a row's smallest entry with probability density - epsilon, its largest with density +
    epsilon."""
    rescale: Literal["paper", "l1", "none"] = "paper"
    """Divide kept entries by their probability, restore each tensor's sum of magnitudes (l1), or
    keep them as they are (none)."""

    @model_validator(mode="after")
    def _check_probabilities(self) -> Self:
        for density, epsilon in _pairs(self.density, self.epsilon):
            if density not in {0, 1} and not epsilon <= density <= 1 - epsilon:
                raise ValueError(
                    f"expected probabilities, got density {density:g} -+ epsilon {epsilon:g}; "
                    f"epsilon can be at most {min(density, 1 - density):g}"
                )
        return self


class BandConfig(ComponentConfig):
    """Options of `band`."""

    density: Fractions = 0.1
    """Keep this fraction of each tensor's entries, the largest below the dropped ones."""
    gamma: Fractions = 0.01
    """Drop this fraction of each tensor's entries, the largest ones; fewer if `density` leaves no
    room for them."""
    rescale: Literal["none", "l1"] = "none"
    """Keep entries as they are, or restore each tensor's sum of magnitudes (l1)."""


class SparseConfig(ComponentConfig):
    """Options that combine sparse task vectors."""

    elect: Literal["none", "ties"] = "none"
    """Sum all entries, or only those with the sign of their weighted sum (ties)."""
    weights: ExpertWeights | None = None
    """One factor per expert, by name or as a list in pool order, also in the election; default: 1
    each."""
    scale: float = 0.3
    """Multiply the merged task vector by this factor (lambda)."""
    normalize: bool = False
    """Divide by the sum of the weights; with `elect: ties`, by the sum of the magnitudes of the
    weights of the experts that agree in sign."""


class DareConfig(DropConfig, SparseConfig):
    """Options of `dare`."""


class DellaConfig(MagPruneConfig, SparseConfig):
    """Options of `della`."""

    elect: Literal["none", "ties"] = "ties"
    """Sum all entries, or only those with the sign of their weighted sum (ties)."""
    scale: float = 1.0
    """Multiply the merged task vector by this factor (lambda)."""
    normalize: bool = True
    """Divide by the sum of the weights; with `elect: ties`, by the sum of the magnitudes of the
    weights of the experts that agree in sign."""


class BreadcrumbsConfig(BandConfig, SparseConfig):
    """Options of `breadcrumbs`."""


class SceConfig(ComponentConfig):
    """Options of `sce`."""

    density: Fraction = 1.0
    """Merge this fraction of the positions where experts differ, those that vary most."""
    weights: ExpertWeights | None = None
    """Multiply each expert's share by one factor, by name or as a list in pool order; default: 1
    each."""


class MagMaxConfig(ComponentConfig):
    """Options of `magmax`."""

    scale: float = 0.5
    """Multiply the merged task vector by this factor (lambda)."""


class ConsensusConfig(ComponentConfig):
    """Options of `consensus`."""

    k: Annotated[int, Field(ge=0)] | None = None
    """Keep entries that are in the masks of at least this many experts; default: 2, or 1 with
    task_masks."""
    tall_lambda: PerExpert[Annotated[float, Field(ge=0)]] = 0.4
    """Put an entry in an expert's mask if its magnitude is at least this many times that of the sum
    of the other experts' entries."""
    scale: float = 0.3
    """Multiply the merged task vector by this factor (lambda); a task's own weights have factor
    1."""
    task_masks: bool = False
    """Save one mask per expert with the model, and evaluate each task with its mask."""

    @property
    def min_masks(self) -> int:
        """The number of masks that an entry needs."""
        return self.k if self.k is not None else 1 if self.task_masks else 2

    @model_validator(mode="after")
    def _check_masks(self) -> Self:
        if self.task_masks and self.min_masks > 1:
            raise ValueError(
                f"with task_masks k can be at most 1, got {self.k}: entries that only one task "
                "needs would be missing from its weights"
            )
        if self.task_masks and self.scale == 0:
            raise ValueError("with task_masks scale cannot be 0: the masks would select nothing")
        return self


class PcbConfig(ComponentConfig):
    """Options of `pcb`."""

    density: PerExpert[Annotated[float, Field(gt=0, le=1)]] = 0.1
    """Merge this fraction of each task vector's entries, those that compete best."""
    clip: PerExpert[Annotated[float, Field(ge=0, lt=0.5)]] = 0.0001
    """Clip this fraction of each task vector's magnitudes at either end."""
    weights: ExpertWeights | None = None
    """One factor per expert, by name or as a list in pool order, without dividing by their sum;
    default: 1 each."""
    scale: float = 1.0
    """Multiply the merged task vector by this factor (lambda)."""


class EmrConfig(ComponentConfig):
    """Options of `emr`."""

    rescale: Literal["paper", "authors"] = "paper"
    """Compute a task's scale from sums of magnitudes (the paper), or from sums of each matrix's
    mean magnitude (the authors' code, where a tensor counts as one matrix)."""


class RamConfig(ComponentConfig):
    """Options of `ram`."""

    epsilon: PerExpert[Annotated[float, Field(ge=0)]] = 0.00001
    """Count entries of task vectors up to this magnitude as unchanged."""
    r: PerExpert[Annotated[float, Field(ge=0)]] = 0.0
    """For entries that only one expert changed: multiply them by 1 + r times the expert's ratio of
    shared to unshared changes (RAM+: 0.1)."""
    alpha: PerExpert[Annotated[float, Field(ge=0)]] = 0.2
    """Limit the ratio that `r` multiplies to this value."""
    scope: Literal["model", "tensor"] = "model"
    """Compute ratios over the whole model (the paper), or in each tensor (mergekit)."""

    @property
    def enlarges(self) -> bool:
        """Whether any expert has a factor."""
        match self.r:
            case Mapping():
                return any(self.r.values())
            case float() | int():
                return self.r != 0
            case _:
                return any(self.r)
