"""Tables of the CLIP families on the hub and of their tasks' data sets, read from data files.

A family is a base, a pattern for its experts' names, and a file of published results. A task is a
data set with class names and prompts. To add one, edit the data files. This module imports no torch
and needs no network.
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
    """Checkpoints of one architecture, from `families.json`."""

    name: str
    title: str
    #: repository of the CLIPModel that was fine-tuned
    base: str
    #: pattern of the experts' repositories, with {task} for the task
    expert: str
    #: sizes of the weights in fp32, without headers
    base_bytes: int
    expert_bytes: int

    def experts(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return the experts' repositories by task."""
        return {task: self.expert.format(task=task) for task in tasks}


@dataclass(frozen=True)
class KnownDataSet:
    """A task's data set on the hub, from a file in `data/tasks`."""

    dataset: str
    classnames: list[str]
    templates: list[str]
    #: origin of the class names and templates
    source: str
    #: citation of the images
    citation: str
    config: str | None = None
    #: names of the splits on the hub
    test: str = "test"
    train: str = "train"
    #: names of the columns
    image: str = "image"
    label: str = "label"
    #: number of test images; None if it is uncertain
    rows: int | None = None
    #: whether it has one split of test images per corruption, named after it
    corrupted: bool = False


def families() -> dict[str, Family]:
    """Return the families by pool name."""
    return {name: Family(name, **fields) for name, fields in _table()["families"].items()}


def bases() -> frozenset[str]:
    """Return the repositories whose weights may be read from a pickle."""
    return frozenset(family.base for family in families().values())


def task_sets() -> Mapping[str, list[str]]:
    """Return the named sets of tasks."""
    sets: Mapping[str, list[str]] = _table()["task_sets"]
    return sets


def all_tasks() -> list[str]:
    """Return all tasks, in the order of the largest set."""
    return max(task_sets().values(), key=len)


def expand_sets(names: Sequence[str]) -> list[str]:
    """Return tasks, with each set replaced by its tasks."""
    sets = task_sets()
    return [task for name in names for task in sets.get(name, [name])]


def model_citation() -> str:
    """Return the citation of the base and experts."""
    return str(_table()["citation"])


def data_citations() -> str:
    """Return the citations of all data sets, with their tasks."""
    tasks_by_citation: dict[str, list[str]] = {}
    for task in all_tasks():
        tasks_by_citation.setdefault(load_data_set(task).citation, []).append(task)
    return "; ".join(
        f"{citation} ({', '.join(tasks)})" for citation, tasks in tasks_by_citation.items()
    )


def model_licence() -> str:
    """Return a note on the licences of the base and experts."""
    return str(_table()["licence"])


def data_licence() -> str:
    """Return a note on the licences of the data sets."""
    return str(_table()["licence_of_data"])


@cache
def load_data_set(task: str) -> KnownDataSet:
    """Return a task's data set."""
    return KnownDataSet(**_read(f"tasks/{task}.json"))


@cache
def load_published(family: str) -> Mapping[str, Any]:
    """Return a family's published results in percent: family, source, tasks and rows."""
    return _read(f"published/{family}.json")


@cache
def _table() -> dict[str, Any]:
    return _read("families.json")


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((_DATA / name).read_text(encoding="utf-8"))
    return content
