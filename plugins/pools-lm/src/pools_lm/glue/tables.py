"""The published families and the tasks of GLUE: tables, read from data files.

A family is a base, a pattern for the names of its experts, and a file of published figures. To add
one is to add to the files; nothing here imports torch or asks the network.
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
    """Checkpoints of one architecture, fine-tuned in one way."""

    name: str
    title: str
    #: the repository of the model that experts were fine-tuned from
    base: str
    #: the repositories of experts, {task} in the place of the task
    expert: str
    tasks: Sequence[str]
    #: what their weights take, in fp32
    base_bytes: int
    expert_bytes: int

    def experts(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return the experts' repositories by task."""
        return {task: self.expert.format(task=task) for task in tasks}

    @property
    def download_bytes(self) -> int:
        """What the base and all experts take."""
        return self.base_bytes + len(self.tasks) * self.expert_bytes


def family(name: str) -> Family:
    """Return a family by its name: gpt2, flan-t5-base, ..."""
    return Family(name, **_table()["families"][name])


def said(what: str) -> str:
    """Return the citation or the licence of the models, or of the data."""
    return str(_table()[what])


def examples(task: str) -> dict[str, Any]:
    """Return where a task's test and training examples are on the hub."""
    place = f"hub:{_table()['dataset']}/{task}"
    return {"test": f"{place}/{_task(task).get('split', 'validation')}", "train": f"{place}/train"}


def texts(task: str) -> dict[str, Any]:
    """Return a task's text, or both of a pair, in the order in which classifiers read them."""
    return _some(task, "text", "pair")


def question(task: str) -> dict[str, Any]:
    """Return what a model is asked, how answers are called, and what is measured of them."""
    return {"answer": "label", **_some(task, "prompt", "names", "answer", "metric")}


def published(name: str) -> Mapping[str, Any]:
    """Return a family's published figures: family, source, tasks and rows, in percent."""
    return _read(f"published/{name}.json")


def _some(task: str, *names: str) -> dict[str, Any]:
    return {name: each for name, each in _task(task).items() if name in names}


def _task(name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = _table()["tasks"][name]
    return found


@cache
def _table() -> dict[str, Any]:
    return _read("glue.json")


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_DATA / name).read_text(encoding="utf-8"))
    return found
