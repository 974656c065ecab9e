"""Experts of the small encoder-decoder and encoder, and their merges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from language_cases import POOLS, Cell
from language_parts import Experts, batches_on_all_cores
from small_models import FAMILIES, write_base, write_expert

from fusion_core.recipe.config import AlignmentPolicy
from pools_lm.config import LanguageConfig
from pools_lm.pools import EncoderPool, Seq2SeqPool
from pools_lm.tasks.config import LanguageTasksConfig
from pools_lm.tasks.pool import LanguageTasks
from pools_lm.tasks.sentence_config import ClassificationConfig
from pools_lm.tasks.sentences import ClassificationTasks

if TYPE_CHECKING:
    from fusion_core import TaskPool
    from fusion_core.weights import WeightSource

#: How pools of these architectures read models and tasks.
_READERS: dict[str, Any] = {
    "encoder-decoder": (Seq2SeqPool, LanguageTasks, LanguageTasksConfig, {}),
    "encoder": (EncoderPool, ClassificationTasks, ClassificationConfig, {"head": "expert"}),
}


@dataclass
class SmallExperts(Experts):
    """The experts of a small pool and a seed; `source` has the unpacked packages of texts."""

    def __post_init__(self) -> None:
        self.names = POOLS[self.pool]
        self.directory /= self.pool
        self.directory.mkdir(exist_ok=True)
        family = FAMILIES[self.pool](self.source)
        base, folder = self.directory / "base", self.directory / str(self.seed)
        if not base.is_dir():
            write_base(family, base)
        for name in self.names:
            if not (folder / name).is_dir():
                write_expert(family, base, folder / name, name, self.seed)
        datasets = {name: data.write(name, self.directory) for name, data in family.data.items()}
        self._data = {"datasets": datasets}
        pool, self._tasks, self._config, self._options = _READERS[self.pool]
        models = {name: str(folder / name) for name in self.names}
        self._with_heads = pool(LanguageConfig(base=str(base), models=models))
        self.models = self._with_heads.aligned(AlignmentPolicy(extra="drop"))
        self.tasks = self._bound_tasks(Cell("base"))

    def measure(self, weights: WeightSource, names: tuple[str, ...]) -> dict[str, Any]:
        """Return a model's right answers per task."""
        with batches_on_all_cores():
            model = self.models.build(weights)
            return {"right": {name: self._right(model, name) for name in names}}

    def _bound_tasks(self, cell: Cell) -> TaskPool[Any]:
        config = self._config(datasets=self._datasets(cell), batch_size=50, **self._options)
        bound: TaskPool[Any] = self._tasks(config).bind(self._with_heads)
        return bound
