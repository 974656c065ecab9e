"""The pools `mini8`: CLIP models and tasks from the files in this package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core import choose_tasks
from pools_clip.config import ClipClassificationConfig, ClipConfig, Dataset
from pools_clip.pool import ClipPool
from pools_clip.tasks import ClipClassification
from pools_mini import files
from pools_mini.config import Mini8Config, Mini8TasksConfig

if TYPE_CHECKING:
    from collections.abc import Mapping


class Mini8Pool(ClipPool):
    """A tiny CLIP and its experts, which have the names of their tasks."""

    config_class = Mini8Config

    def __init__(self, config: Mini8Config) -> None:
        tasks = list(files.load_description()["tasks"])
        names = choose_tasks(config.tasks, tasks, "model_pool.tasks")
        experts = {name: files.checkpoint("experts", name) for name in names}
        super().__init__(ClipConfig(base=files.checkpoint("base"), models=experts))
        self.config = config

    def inputs(self) -> Mapping[str, Any]:
        """Identify the inputs independently of the directory of the package."""
        return {
            name: {**identity, "source": f"mini8/{name}"}
            for name, identity in super().inputs().items()
        }


class Mini8Tasks(ClipClassification):
    """The eight tasks. UNLABELED images differ from the test images."""

    config_class = Mini8TasksConfig

    def __init__(self, config: Mini8TasksConfig) -> None:
        description = files.load_description()
        # the parent class would also accept data sets on the hub
        choose_tasks(config.tasks, list(description["tasks"]), "task_pool.tasks")
        datasets = {
            name: Dataset(
                classnames=task["classnames"],
                test=files.images(name, "test"),
                unlabeled=files.images(name, "unlabeled"),
                train=files.images(name, "train"),
            )
            for name, task in description["tasks"].items()
        }
        super().__init__(
            ClipClassificationConfig(
                clip=files.checkpoint("base"),
                datasets=datasets,
                templates=description["templates"],
                **config.model_dump(),
            )
        )
        self.config = config
