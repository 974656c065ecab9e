"""The pools `gpt2-glue` and `flan-t5-glue`: published experts and GLUE tasks, from the hub.

Repositories, prompts, answer words and splits are those of FusionBench (arXiv:2406.03280).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from fusion_core import Published, choose_tasks
from fusion_core.weights import RenamedSource, change_config
from pools_lm.config import LanguageConfig
from pools_lm.glue.config import FlanT5Config, FlanT5TasksConfig, Gpt2Config, Gpt2TasksConfig
from pools_lm.glue.tables import (
    examples_of,
    load_family,
    load_published,
    question_options,
    text_options,
)
from pools_lm.language_pool import LanguagePool
from pools_lm.pools import Seq2SeqPool
from pools_lm.tasks.config import GenerateLines, GenerateTasksConfig
from pools_lm.tasks.pool import LanguageTasks
from pools_lm.tasks.sentence_config import ClassificationConfig, ClassLines
from pools_lm.tasks.sentences import ClassificationTasks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core import ComponentConfig
    from fusion_core.weights import Files
    from pools_lm.glue.tables import Family

#: Maximum number of tokens in a context, and in an answer.
_LENGTH, _ANSWER_TOKENS = 512, 9


class Gpt2Glue(LanguagePool):
    """GPT-2 without a head. The experts' heads belong to the tasks of the same name.

    Raises `RecipeError` for a task without an expert, `HubError` if the hub refuses access.
    """

    config_class: ClassVar[Any] = Gpt2Config
    auto = "AutoModel"

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__(_language_config(load_family("gpt2"), config.tasks))
        self.config = config

    def _unify_names(self) -> None:
        super()._unify_names()
        base_names = self.reference.infos
        self.experts = {
            name: RenamedSource(expert, {n: n for n in expert.infos if n in base_names})
            for name, expert in self.experts.items()
        }

    def side_files(self) -> Mapping[str, Files]:
        """Return each model's side files, without the class of the dropped head."""

        def drop_class(config: dict[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in config.items() if key != "architectures"}

        return {
            name: change_config(files, drop_class) for name, files in super().side_files().items()
        }


class Gpt2GlueTasks(ClassificationTasks):
    """GLUE tasks, classified by the experts' heads.

    Raises `RecipeError` for an unknown task, `HubError` if the hub refuses access.
    """

    config_class: ClassVar[type[ComponentConfig]] = Gpt2TasksConfig

    def __init__(self, config: Gpt2TasksConfig) -> None:
        family = load_family("gpt2")
        datasets = {
            task: ClassLines(head=repository, **text_options(task), **examples_of(task))
            for task, repository in family.experts(family.tasks).items()
        }
        options = config.model_dump()
        super().__init__(ClassificationConfig(datasets=datasets, length=_LENGTH, **options))
        self.config = config
        self.published = _read_published(family)


class FlanT5Glue(Seq2SeqPool):
    """Flan-T5 and its experts, after full fine-tuning or with LoRA.

    Raises `RecipeError` for a task without an expert, `HubError` if the hub refuses access.
    """

    config_class: ClassVar[Any] = FlanT5Config

    def __init__(self, config: FlanT5Config) -> None:
        super().__init__(_language_config(load_family(f"flan-t5-{config.variant}"), config.tasks))
        self.config = config


class FlanT5GlueTasks(LanguageTasks):
    """GLUE tasks as questions that are answered in words.

    Raises `RecipeError` for an unknown task, `HubError` if the hub refuses access.
    """

    config_class: ClassVar[type[ComponentConfig]] = FlanT5TasksConfig

    def __init__(self, config: FlanT5TasksConfig) -> None:
        family = load_family(f"flan-t5-{config.variant}")
        datasets = {
            task: GenerateLines(
                max_tokens=_ANSWER_TOKENS, **question_options(task), **examples_of(task)
            )
            for task in family.tasks
        }
        options = config.model_dump(exclude={"variant"})
        # The first token of an answer tells its class, and published searches see no other.
        super().__init__(
            GenerateTasksConfig(
                datasets=datasets, chat=False, length=_LENGTH, answer_tokens=0, **options
            )
        )
        self.config = config
        self.published = _read_published(family)


def _language_config(family: Family, tasks: list[str] | None) -> LanguageConfig:
    names = choose_tasks(tasks, family.tasks, "model_pool.tasks")
    return LanguageConfig(base=family.base, models=family.experts(names))


def _read_published(family: Family) -> Published:
    table = load_published(family.name)
    rows = {
        method: {task: value / 100 for task, value in zip(table["tasks"], row, strict=True)}
        for method, row in table["rows"].items()
    }
    return Published(table["family"], table["source"], rows)
