"""Options of the sparsifying and sign-electing methods."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fusion_core import ComponentConfig, ExpertWeights

Fraction = Annotated[float, Field(ge=0, le=1)]


class TrimConfig(ComponentConfig):
    """How much of each task vector is kept."""

    density: Fraction = 0.2
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

    density: Fraction = 0.2
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


class DropConfig(ComponentConfig):
    """How much is kept by chance, and how the loss is made good."""

    density: Fraction = 0.5
    """The probability that an entry is kept."""
    rescale: Literal["paper", "l1"] = "paper"
    """Divide what is kept by the density, or restore each tensor's sum of magnitudes."""


class MagPruneConfig(ComponentConfig):
    """How much is kept by chance, how far that depends on the rank, how the loss is made good."""

    density: Fraction = 0.5
    """The mean probability that an entry is kept."""
    epsilon: Fraction = 0.15
    """A row's smallest entry is kept with density - epsilon, its largest with density + epsilon."""
    rescale: Literal["paper", "l1"] = "paper"
    """Divide what is kept by its probability, or restore each tensor's sum of magnitudes."""

    @model_validator(mode="after")
    def _check_probabilities(self) -> Self:
        density, epsilon = self.density, self.epsilon
        if density not in {0, 1} and not epsilon <= density <= 1 - epsilon:
            raise ValueError(
                f"density {density:g} -+ epsilon {epsilon:g} leaves the range of probabilities; "
                f"epsilon can be {min(density, 1 - density):g} at most"
            )
        return self


class BandConfig(ComponentConfig):
    """How much of each tensor is kept, and how much is dropped above it."""

    density: Fraction = 0.1
    """The fraction of a tensor's entries that is kept: the largest below those dropped."""
    gamma: Fraction = 0.01
    """The fraction that is dropped at the top."""


class SparseConfig(ComponentConfig):
    """How sparse task vectors are combined."""

    elect: Literal["none", "ties"] = "none"
    """Sum all entries, or those that have the sign of their weighted sum."""
    weights: ExpertWeights | None = None
    """One factor an expert, by name or in pool order; default: 1 each. They vote, too."""
    scale: float = 0.3
    """Lambda: the factor of the combined task vectors."""


class DareConfig(DropConfig, SparseConfig):
    """How much is dropped by chance, and how what is kept is combined."""

    normalize: bool = False
    """Divide by the sum of the weights that took part."""


class DellaConfig(MagPruneConfig, SparseConfig):
    """How much is dropped by chance, and how what is kept is combined."""

    elect: Literal["none", "ties"] = "ties"
    """Sum all entries, or those that have the sign of their weighted sum."""
    scale: float = 1.0
    """Lambda: the factor of the combined task vectors."""
    normalize: bool = True
    """Divide by the sum of the weights that took part."""


class BreadcrumbsConfig(BandConfig, SparseConfig):
    """How much of each tensor is kept, and how what is kept is combined."""


class SceConfig(ComponentConfig):
    """How many positions are selected, and each expert's part."""

    density: Fraction = 1.0
    """The fraction of the positions where experts differ that is merged, the most varying ones."""
    weights: ExpertWeights | None = None
    """One factor an expert of its share, by name or in pool order; default: 1 each."""


class MagMaxConfig(ComponentConfig):
    """How far to go."""

    scale: float = 0.5
    """Lambda: the factor of the chosen entries."""


class ConsensusConfig(ComponentConfig):
    """Which entries are needed by enough experts, and how far to go along their sum."""

    k: Annotated[int, Field(ge=0)] | None = None
    """An entry is kept if at least so many experts' masks have it; default: 2, or 1 with masks."""
    tall_lambda: Annotated[float, Field(ge=0)] = 0.4
    """How many times larger than the others' sum an expert's entry is in its mask."""
    scale: float = 0.3
    """Lambda: the factor of the summed task vectors; a task's own weights have them once."""
    task_masks: bool = False
    """Save the experts' masks with the model, and measure each task with its own."""

    @property
    def fewest(self) -> int:
        """How many masks have to have an entry."""
        return self.k if self.k is not None else 1 if self.task_masks else 2

    @model_validator(mode="after")
    def _check_masks(self) -> Self:
        if self.task_masks and self.fewest > 1:
            raise ValueError(
                f"with task_masks k can be 1 at most, not {self.k}: entries that one task alone "
                "needs would be missing from its weights"
            )
        if self.task_masks and self.scale == 0:
            raise ValueError("with task_masks scale cannot be 0: nothing would be there to mask")
        return self


class PcbConfig(ComponentConfig):
    """How many entries compete, and how they are combined."""

    density: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The fraction of each task vector's entries that takes part, those of largest balance."""
    clip: Annotated[float, Field(ge=0, lt=0.5)] = 0.0001
    """The fraction of magnitudes that is clipped at either end."""
    weights: ExpertWeights | None = None
    """One factor an expert, by name or in pool order; default: 1 each. They do not divide."""
    scale: float = 1.0
    """Lambda: the factor of the merged task vector."""


class EmrConfig(ComponentConfig):
    """How each task's scale is found."""

    rescale: Literal["paper", "authors"] = "paper"
    """Compare sums of magnitudes over the model or, as the authors' code, of its tensors' means."""
