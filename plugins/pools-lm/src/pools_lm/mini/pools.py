"""The pools `lm-mini`: those of language models, on the files inside this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_core import choose_tasks
from fusion_core.weights import PackagedFiles
from pools_lm.config import LanguageConfig
from pools_lm.mini.config import MiniConfig, MiniTasksConfig
from pools_lm.pools import CausalPool
from pools_lm.tasks.config import LanguageTasksConfig
from pools_lm.tasks.pool import LanguageTasks

if TYPE_CHECKING:
    from collections.abc import Mapping

DATA = Path(__file__).parents[1] / "data" / "lm-mini"
_SPLITS = ("test", "unlabeled", "train")
#: An answer is a word or two.
_KINDS: Mapping[str, dict[str, Any]] = {
    "perplexity": {"kind": "perplexity"},
    "choice": {"kind": "choice"},
    "generation": {"kind": "generate", "max_tokens": 24},
}


class MiniPool(CausalPool):
    """A tiny Llama and its experts, each called like its task."""

    config_class: ClassVar[Any] = MiniConfig

    def __init__(self, config: MiniConfig) -> None:
        files = PackagedFiles(DATA, "pools-lm")
        names = choose_tasks(config.tasks, list(_about(files)), "model_pool.tasks")
        experts = {name: files.directory(f"experts/{name}") for name in names}
        super().__init__(LanguageConfig(base=files.directory("base"), models=experts))
        self.config = config

    def inputs(self) -> Mapping[str, Any]:
        """Identify the inputs by what they are, wherever the package is installed."""
        return {
            name: {**identity, "source": f"lm-mini/{name}"}
            for name, identity in super().inputs().items()
        }


class MiniTasks(LanguageTasks):
    """The six tasks; UNLABELED are lines apart from the test lines, without answers."""

    config_class = MiniTasksConfig

    def __init__(self, config: MiniTasksConfig) -> None:
        files = PackagedFiles(DATA, "pools-lm")
        datasets: Any = {name: _dataset(files, name, each) for name, each in _about(files).items()}
        super().__init__(LanguageTasksConfig(datasets=datasets, **config.model_dump()))
        self.config = config


def _about(files: PackagedFiles) -> dict[str, dict[str, str]]:
    """Return the content of tasks.json: kind, title, source and licence by task."""
    content: dict[str, dict[str, str]] = json.loads(files.file("tasks.json").read_bytes())["tasks"]
    return content


def _dataset(files: PackagedFiles, name: str, about: Mapping[str, str]) -> dict[str, Any]:
    paths = {split: str(files.file(f"tasks/{name}/{split}.jsonl")) for split in _SPLITS}
    return {**_KINDS[about["kind"]], **paths}
