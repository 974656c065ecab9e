"""Options of mini8; free of torch, so that listing them costs nothing."""

from fusion_core import ComponentConfig
from pools_clip.config import Count, TaskNames


class Mini8Config(ComponentConfig):
    """The base and one expert a task, all inside the package."""

    tasks: TaskNames | None = None
    """The tasks whose experts are fused, in this order; default: all eight."""


class Mini8TasksConfig(ComponentConfig):
    """Eight tasks, their images inside the package; unlabeled images are not the test images."""

    tasks: TaskNames | None = None
    """Which tasks, in this order; default: those whose experts the model pool of this name fuses,
    or all eight."""
    limit: Count | None = None
    """A quick look: only the first test images of each task."""
    batch_size: Count = 50
    """Images a step when measuring accuracy."""
