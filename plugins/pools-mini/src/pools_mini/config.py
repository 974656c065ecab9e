"""Options of mini8. Importing them does not import torch."""

from fusion_core import ComponentConfig
from pools_clip.config import Count, TaskNames


class Mini8Config(ComponentConfig):
    """A tiny base and one expert per task, included in the package."""

    tasks: TaskNames | None = None
    """Merge the experts of these tasks, in this order. Default: all eight."""


class Mini8TasksConfig(ComponentConfig):
    """Eight tasks, included in the package. Unlabeled images differ from the test images."""

    tasks: TaskNames | None = None
    """Evaluate these tasks, in this order. Default: the tasks whose experts the model pool of the
    same name merges, or all eight."""
    limit: Count | None = None
    """Evaluate only the first test images of each task."""
    batch_size: Count = 50
    """Limit the number of images per batch in evaluation."""
