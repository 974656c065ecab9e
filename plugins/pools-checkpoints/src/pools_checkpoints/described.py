"""Pools whose models come with files that describe them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from fusion_core import ComponentConfig, ModelPool
from pools_checkpoints.comparison.agreement import Agreement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.weights import Difference
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
        """Compare the models' side files."""
        return self._agreement.differences(topic)

    @cached_property
    def _agreement(self) -> Agreement:
        return Agreement(self.by_name, self.side_files())
