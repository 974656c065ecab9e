"""Experts of the text encoders and of the small encoder-decoder, and their merges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from language_cases import ENCODER, ENCODER_DECODER, OTHER_TASKS, POOLS, PUBLISHED_ENCODER, Cell
from language_parts import Experts, batches_on_all_cores
from small_encoder import OtherTasks, PublishedEncoder, TextEncoder
from small_encoder_decoder import EncoderDecoder

from fusion_core.recipe.config import AlignmentPolicy
from pools_lm.config import LanguageConfig
from pools_lm.pools import EncoderPool, Seq2SeqPool
from pools_lm.tasks.config import LanguageTasksConfig
from pools_lm.tasks.pool import LanguageTasks
from pools_lm.tasks.sentence_config import ClassificationConfig
from pools_lm.tasks.sentences import ClassificationTasks

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core import TaskPool
    from fusion_core.weights import WeightSource


def _classification(data: dict[str, Any]) -> ClassificationTasks:
    return ClassificationTasks(ClassificationConfig(datasets=data, batch_size=50, head="expert"))


def _questions(data: dict[str, Any]) -> LanguageTasks:
    return LanguageTasks(LanguageTasksConfig(datasets=data, batch_size=50))


#: By pool: who trains its models, their model pool, and their task pool.
_FAMILIES: dict[str, Any] = {
    ENCODER: (TextEncoder, EncoderPool, _classification),
    PUBLISHED_ENCODER: (PublishedEncoder, EncoderPool, _classification),
    OTHER_TASKS: (OtherTasks, EncoderPool, _classification),
    ENCODER_DECODER: (EncoderDecoder, Seq2SeqPool, _questions),
}


@dataclass
class SmallExperts(Experts):
    """The experts of a small pool and a seed; `source` has the unpacked packages of texts."""

    #: the wheel of a published base
    wheel: Path | None = None

    def __post_init__(self) -> None:
        self.names = POOLS[self.pool]
        self.directory /= self.pool
        self.directory.mkdir(exist_ok=True)
        family, pool, self._make_tasks = _FAMILIES[self.pool]
        trained = family(self.source) if self.wheel is None else family(self.source, self.wheel)
        base, folder = self.directory / "base", self.directory / str(self.seed)
        if not base.is_dir():
            trained.write_base(base)
        for name in self.names:
            if not (folder / name).is_dir():
                trained.write_expert(name, base, folder / name, self.seed)
        datasets = {name: data.write(name, self.directory) for name, data in trained.data.items()}
        self._data = {"datasets": datasets}
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
        bound: TaskPool[Any] = self._make_tasks(self._datasets(cell)).bind(self._with_heads)
        return bound
