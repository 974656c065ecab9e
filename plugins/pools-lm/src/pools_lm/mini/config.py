"""Options of lm-mini. Importing them does not import torch."""

from fusion_core import ComponentConfig
from pools_lm.tasks.config import Count, SamplingConfig, TaskNames


class MiniConfig(ComponentConfig):
    """A tiny base and one expert per task, included in the package."""

    tasks: TaskNames | None = None
    """Merge the experts of these tasks, in this order. Default: all six."""


class MiniTasksConfig(SamplingConfig):
    """Six tasks, included in the package. Unlabeled lines differ from the test lines."""

    batch_size: Count = 32
    """Set the number of examples per batch in evaluation."""
