"""One method under translation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from recipes_fusionbench.models import Models
    from recipes_fusionbench.options import Options

#: The examples that a method needs, by the section of the pool that FusionBench takes them from.
Data = Literal["train_datasets", "test_datasets"]


@dataclass
class Fusion:
    """The translation of a method to the stages of an algorithm."""

    options: Options
    models: Models
    stages: list[dict[str, Any]] = field(default_factory=list)
    #: the directory that the method itself writes
    output: str | None = None
    data: Data | None = None

    def add(self, name: str, **options: object) -> None:
        """Add a stage."""
        self.stages.append({"name": name, **options})

    def take_output(self) -> None:
        """Take the directory that the method itself writes, if the file determines it."""
        self.options.ignore("model_save_path", "model_save_kwargs")
        path = self.options.values.get("model_save_path")
        self.output = path if isinstance(path, str) else None
