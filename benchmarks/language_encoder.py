"""Experts of the small text encoder, and their merges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from language_cases import POOLS, Cell
from language_parts import Experts, batches_on_all_cores
from small_encoder import TextEncoder

from fusion_core.recipe.config import AlignmentPolicy
from pools_lm.config import LanguageConfig
from pools_lm.pools import EncoderPool
from pools_lm.tasks.sentence_config import ClassificationConfig
from pools_lm.tasks.sentences import ClassificationTasks

if TYPE_CHECKING:
    from fusion_core import TaskPool
    from fusion_core.weights import WeightSource


@dataclass
class EncoderExperts(Experts):
    """The encoder's experts of a seed; `source` has the unpacked packages of texts."""

    def __post_init__(self) -> None:
        self.names = POOLS[self.pool]
        self.directory /= self.pool
        self.directory.mkdir(exist_ok=True)
        encoder = TextEncoder(self.source)
        base, folder = self.directory / "base", self.directory / str(self.seed)
        if not base.is_dir():
            encoder.write_base(base)
        for name in self.names:
            if not (folder / name).is_dir():
                encoder.write_expert(name, base, folder / name, self.seed)
        datasets = {name: data.write(name, self.directory) for name, data in encoder.data.items()}
        self._data = {"datasets": datasets}
        models = {name: str(folder / name) for name in self.names}
        self._with_heads = EncoderPool(LanguageConfig(base=str(base), models=models))
        self.models = self._with_heads.aligned(AlignmentPolicy(extra="drop"))
        self.tasks = self._bound_tasks(Cell("base"))

    def measure(self, weights: WeightSource, names: tuple[str, ...]) -> dict[str, Any]:
        """Return a model's right answers per task."""
        with batches_on_all_cores():
            model = self.models.build(weights)
            return {"right": {name: self._right(model, name) for name in names}}

    def _bound_tasks(self, cell: Cell) -> TaskPool[Any]:
        datasets = self._datasets(cell)
        config = ClassificationConfig(datasets=datasets, batch_size=50, head="expert")
        return ClassificationTasks(config).bind(self._with_heads)
