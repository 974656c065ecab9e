"""The pools `mini8`: those of pools-clip, on the files inside this package."""

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
    """A tiny CLIP and its experts, each called like its task."""

    config_class = Mini8Config

    def __init__(self, config: Mini8Config) -> None:
        known = list(files.description()["tasks"])
        names = choose_tasks(config.tasks, known, "model_pool.tasks")
        experts = {name: files.checkpoint("experts", name) for name in names}
        super().__init__(ClipConfig(base=files.checkpoint("base"), models=experts))
        self.config = config

    def inputs(self) -> Mapping[str, Any]:
        """Identify the inputs by what they are, wherever the package is installed."""
        return {
            name: {**identity, "source": f"mini8/{name}"}
            for name, identity in super().inputs().items()
        }


class Mini8Tasks(ClipClassification):
    """The eight tasks; UNLABELED are images apart from the test images."""

    config_class = Mini8TasksConfig

    def __init__(self, config: Mini8TasksConfig) -> None:
        about = files.description()
        choose_tasks(config.tasks, list(about["tasks"]), "task_pool.tasks")  # these, not the hub's
        datasets = {name: _dataset(name, each) for name, each in about["tasks"].items()}
        super().__init__(
            ClipClassificationConfig(
                clip=files.checkpoint("base"),
                datasets=datasets,
                templates=about["templates"],
                **config.model_dump(),
            )
        )
        self.config = config


def _dataset(name: str, about: Mapping[str, Any]) -> Dataset:
    return Dataset(
        classnames=about["classnames"],
        test=files.images(name, "test"),
        unlabeled=files.images(name, "unlabeled"),
        train=files.images(name, "train"),
    )
