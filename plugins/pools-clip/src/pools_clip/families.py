"""The CLIP families on the hub, and the data sets of their tasks: tables, read from data files.

A family is a base, a pattern for the names of its experts, and a file of published figures; a task
is a data set with class names and prompts. To add one is to add to the files; nothing here imports
torch or asks the network.
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
    """Checkpoints of one architecture: an entry of `families.json`."""

    name: str
    title: str
    #: the repository of the CLIPModel that experts were fine-tuned from
    base: str
    #: the repositories of experts, {task} in the place of the task
    expert: str
    #: what their weights take, in fp32; headers come on top
    base_bytes: int
    expert_bytes: int

    def experts(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return the experts' repositories by task."""
        return {task: self.expert.format(task=task) for task in tasks}


@dataclass(frozen=True)
class Known:
    """A task's data set on the hub: a file of `data/tasks`."""

    dataset: str
    classnames: list[str]
    templates: list[str]
    #: where class names and templates are from
    source: str
    #: who made the images, to be cited
    citation: str
    config: str | None = None
    #: the names of the splits there
    test: str = "test"
    train: str = "train"
    #: the names of the columns there
    image: str = "image"
    label: str = "label"
    #: the images of its test split; None where that is not certain
    rows: int | None = None
    #: whether it has a split of test images a corruption, called like it
    corrupted: bool = False


def families() -> dict[str, Family]:
    """Return the families by the names of their pools."""
    return {name: Family(name, **fields) for name, fields in _table()["families"].items()}


def bases() -> frozenset[str]:
    """Return the repositories whose weights may be read from a pickle."""
    return frozenset(family.base for family in families().values())


def task_sets() -> Mapping[str, list[str]]:
    """Return the names that stand for several tasks, each with its tasks."""
    sets: Mapping[str, list[str]] = _table()["task_sets"]
    return sets


def all_tasks() -> list[str]:
    """Return every task that has a data set, in the order of the largest set."""
    return max(task_sets().values(), key=len)


def expanded(wanted: Sequence[str]) -> list[str]:
    """Return tasks with the names of sets replaced by their tasks."""
    sets = task_sets()
    return [task for name in wanted for task in sets.get(name, [name])]


def citation() -> str:
    """Return what to cite for base and experts."""
    return str(_table()["citation"])


def citations_of_data() -> str:
    """Return what to cite for each data set."""
    named: dict[str, list[str]] = {}
    for task in all_tasks():
        named.setdefault(known(task).citation, []).append(task)
    return "; ".join(f"{cited} ({', '.join(tasks)})" for cited, tasks in named.items())


def licence() -> str:
    """Say where the licences of base and experts stand."""
    return str(_table()["licence"])


def licence_of_data() -> str:
    """Say where the licences of data sets stand."""
    return str(_table()["licence_of_data"])


@cache
def known(task: str) -> Known:
    """Return a task's data set."""
    return Known(**_read(f"tasks/{task}.json"))


@cache
def published(family: str) -> Mapping[str, Any]:
    """Return a family's published figures: family, source, tasks and rows, in percent."""
    return _read(f"published/{family}.json")


@cache
def _table() -> dict[str, Any]:
    return _read("families.json")


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_DATA / name).read_text(encoding="utf-8"))
    return found
