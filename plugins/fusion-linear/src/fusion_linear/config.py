"""Options of the linear methods."""

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
