"""Tables of published families and GLUE tasks, read from data files.

A family is a base, a pattern for its experts' names, and a file of published results. To add a
family, edit the data files. This module imports no torch and needs no network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Family:
    """Checkpoints of one architecture, fine-tuned in the same way."""

    name: str
    title: str
    #: repository of the model that was fine-tuned
    base: str
    #: pattern of the experts' repositories, with {task} for the task
    expert: str
    tasks: Sequence[str]
    #: sizes in fp32
    base_bytes: int
    expert_bytes: int

    def experts(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return the experts' repositories by task."""
        return {task: self.expert.format(task=task) for task in tasks}

    @property
    def download_bytes(self) -> int:
        """The size of the base and all experts."""
        return self.base_bytes + len(self.tasks) * self.expert_bytes


def load_family(name: str) -> Family:
    """Return a family by its name: gpt2, flan-t5-base, ..."""
    return Family(name, **_table()["families"][name])


def load_notice(key: str) -> str:
    """Return the citation or the licence of the models or of the data."""
    return str(_table()[key])


def examples_of(task: str) -> dict[str, Any]:
    """Return the splits on the hub with a task's test and training examples."""
    prefix = f"hub:{_table()['dataset']}/{task}"
    split = _table()["tasks"][task].get("split", "validation")
    return {"test": f"{prefix}/{split}", "train": f"{prefix}/train"}


def text_options(task: str) -> dict[str, Any]:
    """Return the templates of a task's text, or of its pair, in the order for classifiers."""
    return _select_options(task, "text", "pair")


def question_options(task: str) -> dict[str, Any]:
    """Return a task's prompt, answer names and metric."""
    return {"answer": "label", **_select_options(task, "prompt", "names", "answer", "metric")}


def load_published(name: str) -> Mapping[str, Any]:
    """Return a family's published results in percent: family, source, tasks and rows."""
    return _read(f"published/{name}.json")


def _select_options(task: str, *names: str) -> dict[str, Any]:
    return {name: value for name, value in _table()["tasks"][task].items() if name in names}


@cache
def _table() -> dict[str, Any]:
    return _read("glue.json")


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((_DATA / name).read_text(encoding="utf-8"))
    return content
