"""The pools `lm-mini`: models and tasks from the files in this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_core import choose_tasks
from pools_checkpoints import PackagedFiles
from pools_lm.config import LanguageConfig
from pools_lm.mini.config import MiniConfig, MiniTasksConfig
from pools_lm.pools import CausalPool
from pools_lm.tasks.config import LanguageTasksConfig
from pools_lm.tasks.pool import LanguageTasks

if TYPE_CHECKING:
    from collections.abc import Mapping

DATA = Path(__file__).parents[1] / "data" / "lm-mini"
_SPLITS = ("test", "unlabeled", "train")
#: Options per kind of task. Answers are one or two words.
_KINDS: Mapping[str, dict[str, Any]] = {
    "perplexity": {"kind": "perplexity"},
    "choice": {"kind": "choice"},
    "generation": {"kind": "generate", "max_tokens": 24},
}


class MiniPool(CausalPool):
    """A tiny Llama and its experts, which have the names of their tasks."""

    config_class: ClassVar[Any] = MiniConfig

    def __init__(self, config: MiniConfig) -> None:
        files = PackagedFiles(DATA, "pools-lm")
        names = choose_tasks(config.tasks, list(_read_tasks(files)), "model_pool.tasks")
        experts = {name: files.directory(f"experts/{name}") for name in names}
        super().__init__(LanguageConfig(base=files.directory("base"), models=experts))
        self.config = config

    def inputs(self) -> Mapping[str, Any]:
        """Identify the inputs independently of the directory of the package."""
        return {
            name: {**identity, "source": f"lm-mini/{name}"}
            for name, identity in super().inputs().items()
        }


class MiniTasks(LanguageTasks):
    """The six tasks. UNLABELED lines have no answers and differ from the test lines."""

    config_class = MiniTasksConfig

    def __init__(self, config: MiniTasksConfig) -> None:
        files = PackagedFiles(DATA, "pools-lm")
        datasets: Any = {
            name: {
                **_KINDS[description["kind"]],
                **{split: str(files.file(f"tasks/{name}/{split}.jsonl")) for split in _SPLITS},
            }
            for name, description in _read_tasks(files).items()
        }
        super().__init__(LanguageTasksConfig(datasets=datasets, **config.model_dump()))
        self.config = config


def _read_tasks(files: PackagedFiles) -> dict[str, dict[str, str]]:
    """Return the kind, title, source and licence of each task in tasks.json."""
    tasks: dict[str, dict[str, str]] = json.loads(files.file("tasks.json").read_bytes())["tasks"]
    return tasks
