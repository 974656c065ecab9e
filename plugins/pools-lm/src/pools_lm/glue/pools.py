"""The pools `gpt2-glue` and `flan-t5-glue`: published experts and the tasks of GLUE, from the hub.

Repositories, prompts, words of answers and splits are FusionBench's (arXiv:2406.03280).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from fusion_core import Published, choose_tasks
from fusion_core.weights import RenamedSource, with_config
from pools_lm.config import LanguageConfig
from pools_lm.glue.config import FlanT5Config, FlanT5TasksConfig, Gpt2Config, Gpt2TasksConfig
from pools_lm.glue.tables import examples, family, published, question, texts
from pools_lm.pools import LanguagePool, Seq2SeqPool
from pools_lm.tasks.config import GenerateLines, GenerateTasksConfig
from pools_lm.tasks.pool import LanguageTasks
from pools_lm.tasks.sentence_config import ClassificationConfig, ClassLines
from pools_lm.tasks.sentences import ClassificationTasks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core import ComponentConfig
    from fusion_core.weights import Files
    from pools_lm.glue.tables import Family

#: Tokens that a model reads at most, and that an answer has.
_LENGTH, _ANSWER = 512, 9


class Gpt2Glue(LanguagePool):
    """GPT-2 without a head; those of the experts belong to the tasks of the same name.

    Raises `RecipeError` for a task without an expert, `HubError` for what the hub refuses.
    """

    config_class: ClassVar[Any] = Gpt2Config
    auto = "AutoModel"

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__(_models(family("gpt2"), config.tasks))
        self.config = config

    def _spell(self) -> None:
        super()._spell()
        known = self.reference.infos
        self.experts = {
            name: RenamedSource(each, {tensor: tensor for tensor in each.infos if tensor in known})
            for name, each in self.experts.items()
        }

    def beside(self) -> Mapping[str, Files]:
        """Return what lies beside each model, without the class whose head is left out."""
        return {
            name: with_config(files, _without_class) for name, files in super().beside().items()
        }


class Gpt2GlueTasks(ClassificationTasks):
    """Texts that the experts' heads put into classes.

    Raises `RecipeError` for an unknown task, `HubError` for what the hub refuses.
    """

    config_class: ClassVar[type[ComponentConfig]] = Gpt2TasksConfig

    def __init__(self, config: Gpt2TasksConfig) -> None:
        own = family("gpt2")
        data = {
            task: ClassLines(head=head, **texts(task), **examples(task))
            for task, head in own.experts(own.tasks).items()
        }
        given = config.model_dump()
        super().__init__(ClassificationConfig(datasets=data, length=_LENGTH, **given))
        self.config = config
        self.published = _published(own)


class FlanT5Glue(Seq2SeqPool):
    """Flan-T5 and experts, fine-tuned whole or by LoRA.

    Raises `RecipeError` for a task without an expert, `HubError` for what the hub refuses.
    """

    config_class: ClassVar[Any] = FlanT5Config

    def __init__(self, config: FlanT5Config) -> None:
        super().__init__(_models(family(f"flan-t5-{config.variant}"), config.tasks))
        self.config = config


class FlanT5GlueTasks(LanguageTasks):
    """Questions that are answered in words.

    Raises `RecipeError` for an unknown task, `HubError` for what the hub refuses.
    """

    config_class: ClassVar[type[ComponentConfig]] = FlanT5TasksConfig

    def __init__(self, config: FlanT5TasksConfig) -> None:
        own = family(f"flan-t5-{config.variant}")
        data = {
            task: GenerateLines(max_tokens=_ANSWER, **question(task), **examples(task))
            for task in own.tasks
        }
        given = config.model_dump(exclude={"variant"})
        super().__init__(GenerateTasksConfig(datasets=data, chat=False, length=_LENGTH, **given))
        self.config = config
        self.published = _published(own)


def _without_class(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "architectures"}


def _models(own: Family, tasks: list[str] | None) -> LanguageConfig:
    names = choose_tasks(tasks, own.tasks, "model_pool.tasks")
    return LanguageConfig(base=own.base, models=own.experts(names))


def _published(own: Family) -> Published:
    found = published(own.name)
    rows = {
        method: {task: value / 100 for task, value in zip(found["tasks"], row, strict=True)}
        for method, row in found["rows"].items()
    }
    return Published(found["family"], found["source"], rows)
