"""Options of lm-mini; free of torch, so that listing them costs nothing."""

from typing import Literal

from fusion_core import ComponentConfig
from pools_lm.tasks.config import Count, TaskNames


class MiniConfig(ComponentConfig):
    """The base and one expert a task, all inside the package."""

    tasks: TaskNames | None = None
    """The tasks whose experts are fused, in this order; default: all six."""


class MiniTasksConfig(ComponentConfig):
    """Six tasks, their lines inside the package; unlabeled lines are not the test lines."""

    tasks: TaskNames | None = None
    """Which tasks, in this order; default: those whose experts the model pool of this name fuses,
    or all six."""
    limit: Count | None = None
    """A quick look: only the first test examples of each task."""
    batch_size: Count = 32
    """Examples at once when measuring."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What models are measured in."""
