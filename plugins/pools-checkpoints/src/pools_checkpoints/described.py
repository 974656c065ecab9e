"""Pools whose models come with files that describe them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from fusion_core import ComponentConfig, ModelPool
from pools_checkpoints.comparison.models import Model, Models
from pools_checkpoints.comparison.table import TABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.weights import Difference, Files, WeightSource
    from pools_checkpoints.comparison.rows import Topic

ConfigT = TypeVar("ConfigT", bound=ComponentConfig)


class DescribedPool(ModelPool[ConfigT]):
    """A base class for pools that list `side_files`: alignment compares the models by them.

    Configurations, tokenizers, processors, labels and chat templates are compared as
    `pools_checkpoints.comparison.table` says. Each file is read once, and files with the same bytes
    are not parsed. Example::

        class BirdsPool(DescribedPool[BirdsConfig]):
            def side_files(self):
                return {name: {"config.json": path} for name, path in self._paths.items()}
    """

    def differences(self, topic: Topic) -> Sequence[Difference]:
        """Compare the models' side files. A run aligns its models often and compares them once."""
        if topic not in self._differences:
            rows = [row for row in TABLE if row.topic == topic]
            self._differences[topic] = [
                difference for row in rows for difference in row.find(self._described_models)
            ]
        return self._differences[topic]

    def describe_differences(self, model: WeightSource, files: Files) -> Sequence[str]:
        """Compare another model's files with those of `assets`, as alignment does.

        A model with other tensors is built by its own configuration, which is not compared.
        """
        base = Model("base", self.reference, self.assets())
        other = Model("the model", model, files)
        topics = {"tokenizer", "config"} if base.shapes == other.shapes else {"tokenizer"}
        models = Models({"base": base, "the model": other})
        rows = (row for row in TABLE if row.topic in topics)
        differences = [difference for row in rows for difference in row.find(models)]
        return [
            str(difference)
            for difference in sorted(differences, key=lambda row: not row.is_serious)
        ]

    @cached_property
    def _differences(self) -> dict[Topic, Sequence[Difference]]:
        return {}

    @cached_property
    def _described_models(self) -> Models:
        files = self.side_files()
        return Models(
            {
                name: Model(name, source, files.get(name, {}))
                for name, source in self.by_name.items()
            }
        )
