"""Task pools of texts, bound to the tokenizer of a pool's models."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from pools_lm.tasks.choice import ChoiceTask
from pools_lm.tasks.config import (
    ChoiceTasksConfig,
    GenerateTasksConfig,
    LanguageTasksConfig,
    PerplexityTasksConfig,
)
from pools_lm.tasks.generate import GenerateTask
from pools_lm.tasks.lines_pool import LinesTasks
from pools_lm.tasks.perplexity import PerplexityTask
from pools_lm.tasks.prompts import Prompts
from pools_lm.tasks.prompts_task import PromptsTask
from pools_lm.tasks.sampling import PromptSampler, write_prompts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from fusion_core import ComponentConfig, ModelPool
    from pools_lm.tasks.task import LanguageTask

_KINDS: Mapping[str, type[LanguageTask[Any]]] = {
    "perplexity": PerplexityTask,
    "choice": ChoiceTask,
    "generate": GenerateTask,
    "agreement": PromptsTask,
}


class LanguageTasks(LinesTasks):
    """Text tasks for decoders and encoder-decoders."""

    config_class: ClassVar[type[ComponentConfig]] = LanguageTasksConfig

    def make_task(self, name: str) -> LanguageTask[Any]:
        """Return a task of the kind in its options."""
        data = self.options.datasets[name]
        return _KINDS[data.kind](name, data, self.options)

    def bind(self, pool: ModelPool[Any]) -> Self:
        """Return these tasks with the tokenizer, chat template and length of a pool's models."""
        options = self.options
        prompts = Prompts.of_pool(pool, chat=options.chat, length=options.length)
        sampler = PromptSampler(pool, prompts, options)
        return self.map_tasks(lambda task: replace(task, prompts=prompts, sampler=sampler))

    def prepare(self, device: torch.device, save: Callable[[str, bytes], None]) -> Self:
        """Return these tasks with prompts and answers that models write on the run's device.

        Prompts of models are written here, and saved.
        """
        prepared = self.map_tasks(lambda task: task.on_device(device))
        if self.options.prompts != "own":
            tasks = (cast("LanguageTask[Any]", task) for task in prepared)
            written = (
                task for task in tasks if task.sampler and task.sampler.has_expert(task.name)
            )
            write_prompts(written, save)
        return prepared


class PerplexityTasks(LanguageTasks):
    """Texts whose likelihood is measured."""

    config_class = PerplexityTasksConfig


class ChoiceTasks(LanguageTasks):
    """Multiple-choice questions."""

    config_class = ChoiceTasksConfig


class GenerateTasks(LanguageTasks):
    """Questions that a model answers by generation."""

    config_class = GenerateTasksConfig
