"""Options of lm-mini; free of torch, so that listing them costs nothing."""

from fusion_core import ComponentConfig
from pools_lm.tasks.config import Count, MeasuringConfig, TaskNames


class MiniConfig(ComponentConfig):
    """The base and one expert a task, all inside the package."""

    tasks: TaskNames | None = None
    """The tasks whose experts are fused, in this order; default: all six."""


class MiniTasksConfig(MeasuringConfig):
    """Six tasks, their lines inside the package; unlabeled lines are not the test lines."""

    batch_size: Count = 32
    """Examples at once when measuring."""
