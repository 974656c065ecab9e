"""Task pools of sentences, bound to the models' tokenizer, modules and heads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from fusion_core.errors import RecipeError
from pools_lm.language_pool import LanguagePool
from pools_lm.pools import ClassificationPool
from pools_lm.tasks.classification import ClassTask, EmbeddingTask
from pools_lm.tasks.encoder import Encoder
from pools_lm.tasks.head_tasks import ExpertTask, HeadTask, LastTokenTask
from pools_lm.tasks.heads import reads_last_token
from pools_lm.tasks.lines_pool import LinesTasks
from pools_lm.tasks.sentence_config import ClassificationConfig, SimilarityConfig
from pools_lm.tasks.similarity import SimilarityTask

if TYPE_CHECKING:
    from fusion_core import ComponentConfig, ModelPool


class ClassificationTasks(LinesTasks):
    """Classification of texts."""

    config_class: ClassVar[type[ComponentConfig]] = ClassificationConfig
    #: None until the pool is bound to models
    models: ModelPool[Any] | None = None

    def make_task(self, name: str) -> ClassTask:
        """Return a task with the chosen head."""
        data = self.options.datasets[name]
        head = self.options.head if data.head is None else "expert"
        task_class = {"model": HeadTask, "expert": ExpertTask}.get(head, EmbeddingTask)
        if task_class is ExpertTask and self.models is not None and reads_last_token(self.models):
            task_class = LastTokenTask
        return task_class(name, data, self.options)

    def bind(self, pool: ModelPool[Any]) -> Self:
        """Return these tasks with the tokenizer, modules and heads of a pool's models.

        Raises `RecipeError` if `head` is `model` and the models have no head.
        """
        has_head = isinstance(pool, ClassificationPool)
        head = self.options.head or ("model" if has_head else "probe")
        if head == "model" and isinstance(pool, LanguagePool) and not has_head:
            raise RecipeError(
                "task_pool.head: the models have no head of their own",
                hint="Use expert, probe or names, or the model pool sequence-classification.",
            )
        clone = self.map_tasks(lambda task: task)
        clone.models = pool
        clone.options = self.options.model_copy(update={"head": head})
        encoder = Encoder.of(pool, prompt=self.options.prompt, length=self.options.length)
        return clone.map_tasks(
            lambda task: replace(
                clone.make_task(task.name),
                encoder=encoder,
                models=pool,
                is_halved=task.is_halved,
                half=task.half,
            )
        )


class SimilarityTasks(LinesTasks):
    """Pairs of sentences whose similarity is measured."""

    config_class = SimilarityConfig

    def make_task(self, name: str) -> SimilarityTask:
        """Return a task that is not bound to models."""
        return SimilarityTask(name, self.options.datasets[name], self.options)

    def bind(self, pool: ModelPool[Any]) -> Self:
        """Return these tasks with the tokenizer and modules of a pool's models."""
        encoder = Encoder.of(pool, prompt=self.options.prompt, length=self.options.length)
        return self.map_tasks(lambda task: replace(task, encoder=encoder))
