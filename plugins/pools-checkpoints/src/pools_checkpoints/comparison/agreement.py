"""Whether models agree in their side files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pools_checkpoints.comparison.models import Model, Models
from pools_checkpoints.comparison.table import TABLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core import WeightSource
    from fusion_core.weights import Difference, Files
    from pools_checkpoints.comparison.rows import Topic


class Agreement:
    """The differences between the side files of models.

    They are kept, because a run aligns its models several times.
    """

    def __init__(self, models: Mapping[str, WeightSource], files: Mapping[str, Files]) -> None:
        """Take the models, the base first if there is one, and their side files by name."""
        self._models = Models(
            {name: Model(name, source, files.get(name, {})) for name, source in models.items()}
        )
        self._differences: dict[Topic, Sequence[Difference]] = {}

    def differences(self, topic: Topic) -> Sequence[Difference]:
        """Compare the files that a topic is about."""
        if topic not in self._differences:
            rows = [row for row in TABLE if row.topic == topic]
            self._differences[topic] = [
                difference for row in rows for difference in row.find(self._models)
            ]
        return self._differences[topic]
