"""The task pools of sentences: bound to the models' tokenizer and, of encoders, their modules."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from fusion_core.errors import RecipeError
from pools_lm.pools import ClassificationPool, LanguagePool
from pools_lm.tasks.by_head import ExpertTask, HeadTask, LastTokenTask
from pools_lm.tasks.classification import ClassTask, EmbeddingTask
from pools_lm.tasks.encoder import Encoder
from pools_lm.tasks.heads import reads_last_token
from pools_lm.tasks.named import LinesTasks
from pools_lm.tasks.sentence_config import ClassificationConfig, SimilarityConfig
from pools_lm.tasks.similarity import SimilarityTask

if TYPE_CHECKING:
    from fusion_core import ComponentConfig, ModelPool


class SentenceTasks(LinesTasks):
    """Tasks on sentences."""

    def encoder_of(self, pool: ModelPool[Any]) -> Encoder:
        """Return how texts are read by a pool's models."""
        options = self.options
        return Encoder.of(pool, prompt=options.prompt, length=options.length)


class ClassificationTasks(SentenceTasks):
    """Texts that are put into classes."""

    config_class: ClassVar[type[ComponentConfig]] = ClassificationConfig
    #: None for a pool that is bound to no models yet
    models: ModelPool[Any] | None = None

    def task(self, name: str) -> ClassTask:
        """Return a task with the head that is chosen."""
        data = self.options.datasets[name]
        head = self.options.head if data.head is None else "expert"
        kind = {"model": HeadTask, "expert": ExpertTask}.get(head, EmbeddingTask)
        if kind is ExpertTask and self.models is not None and reads_last_token(self.models):
            kind = LastTokenTask
        return kind(name, data, self.options)

    def bind(self, pool: ModelPool[Any]) -> Self:
        """Return these tasks with the tokenizer, modules and heads of a pool's models.

        Raises `RecipeError` for the `model`'s own head where models have none.
        """
        has_head = isinstance(pool, ClassificationPool)
        head = self.options.head or ("model" if has_head else "probe")
        if head == "model" and isinstance(pool, LanguagePool) and not has_head:
            raise RecipeError(
                "task_pool.head: these models have no head of their own",
                hint="Use expert, probe or names, or the model pool sequence-classification.",
            )
        clone = self.changed(lambda task: task)
        clone.models = pool
        clone.options = self.options.model_copy(update={"head": head})
        given: dict[str, Any] = {"encoder": self.encoder_of(pool), "models": pool}
        return clone.changed(
            lambda task: replace(
                clone.task(task.name), **given, is_halved=task.is_halved, half=task.half
            )
        )


class SimilarityTasks(SentenceTasks):
    """Pairs of sentences whose similarity is measured."""

    config_class = SimilarityConfig

    def task(self, name: str) -> SimilarityTask:
        """Return a task, not bound to any models yet."""
        return SimilarityTask(name, self.options.datasets[name], self.options)

    def bind(self, pool: ModelPool[Any]) -> Self:
        """Return these tasks with the tokenizer and modules of a pool's models."""
        encoder = self.encoder_of(pool)
        return self.changed(lambda task: replace(task, encoder=encoder))
