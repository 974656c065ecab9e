"""The pools `clip-vit-…`: a base, its published experts and their data sets, from the hub."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from fusion_core import Published, choose_tasks, hub
from pools_clip.config import (
    ClipClassificationConfig,
    ClipConfig,
    FamilyConfig,
    FamilyTasksConfig,
)
from pools_clip.families import all_tasks, expand_sets, families, load_published
from pools_clip.pool import ClipPool
from pools_clip.tasks import ClipClassification

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core import ComponentConfig

_WITHOUT_NETWORK = "To work without a network, use the pool mini8: --pool mini8."


class FamilyPool(ClipPool):
    """A family's base and experts, which have the names of their tasks.

    Raises `RecipeError` for a task without an expert, `HubError` if the hub refuses access.
    """

    config_class: ClassVar[type[ComponentConfig]] = FamilyConfig
    family: ClassVar[str]

    def __init__(self, config: FamilyConfig) -> None:
        family = families()[self.family]
        tasks = choose_tasks(expand_sets(config.tasks), all_tasks(), "model_pool.tasks")
        with hub.add_advice(_WITHOUT_NETWORK):
            super().__init__(ClipConfig(base=family.base, models=family.experts(tasks)))
        self.config = config

    def downloads(self) -> Sequence[hub.FileRequest]:
        """Return the weights of the base and the experts."""
        return [replace(download, otherwise=_WITHOUT_NETWORK) for download in super().downloads()]


class FamilyTasks(ClipClassification):
    """Data sets from the hub, the heads of a family's base, and published results.

    Raises `RecipeError` for an unknown task, `HubError` if the hub refuses access.
    """

    config_class: ClassVar[type[ComponentConfig]] = FamilyTasksConfig
    family: ClassVar[str]

    def __init__(self, config: FamilyTasksConfig) -> None:
        base = families()[self.family].base
        with hub.add_advice(_WITHOUT_NETWORK):
            super().__init__(ClipClassificationConfig(clip=base, **config.model_dump()))
        self.config = config
        self.published = None if config.corruption else _read_published(self.family)

    def downloads(self) -> Sequence[hub.FileRequest]:
        """Return the base and the test images."""
        with hub.add_advice(_WITHOUT_NETWORK):
            return [
                replace(download, otherwise=_WITHOUT_NETWORK) for download in super().downloads()
            ]


class ClipVitB32(FamilyPool):
    """CLIP ViT-B/32."""

    family = "clip-vit-b32"


class ClipVitB16(FamilyPool):
    """CLIP ViT-B/16."""

    family = "clip-vit-b16"


class ClipVitL14(FamilyPool):
    """CLIP ViT-L/14."""

    family = "clip-vit-l14"


class ClipVitB32Tasks(FamilyTasks):
    """Tasks of CLIP ViT-B/32."""

    family = "clip-vit-b32"


class ClipVitB16Tasks(FamilyTasks):
    """Tasks of CLIP ViT-B/16."""

    family = "clip-vit-b16"


class ClipVitL14Tasks(FamilyTasks):
    """Tasks of CLIP ViT-L/14."""

    family = "clip-vit-l14"


def _read_published(family: str) -> Published:
    table = load_published(family)
    rows = {
        method: {task: value / 100 for task, value in zip(table["tasks"], row, strict=True)}
        for method, row in table["rows"].items()
    }
    return Published(table["family"], table["source"], rows)
