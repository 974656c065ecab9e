"""Completion of component names; imports no more than `fuse list-plugins` does."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from fusion_core.contracts.specs import (
    AlgorithmSpec,
    ComponentSpec,
    ExecutorSpec,
    ModelPoolSpec,
    PipelineSpec,
    TaskPoolSpec,
)
from fusion_core.errors import PluginError
from fusion_core.plugins.manager import load_plugins

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion_core.plugins.components import Component

SpecT = TypeVar("SpecT", bound=ComponentSpec)
Candidates = list[tuple[str, str]]


def algorithms(incomplete: str) -> Candidates:
    """Complete the last of a comma-separated list of stages."""
    before, comma, last = incomplete.rpartition(",")
    stages = chain(_names(AlgorithmSpec), _names(PipelineSpec))
    return [(f"{before}{comma}{name}", summary) for name, summary in _starting(last, stages)]


def model_pools(incomplete: str) -> Candidates:
    """Complete a model pool's name."""
    return _starting(incomplete, _names(ModelPoolSpec))


def task_pools(incomplete: str) -> Candidates:
    """Complete a task pool's name."""
    return _starting(incomplete, _names(TaskPoolSpec))


def executors(incomplete: str) -> Candidates:
    """Complete an executor's name."""
    return _starting(incomplete, _names(ExecutorSpec))


def components(incomplete: str) -> Candidates:
    """Complete the name of anything."""
    return _starting(incomplete, _names(ComponentSpec))


def tasks(incomplete: str) -> Candidates:
    """Complete the last of a comma-separated list of tasks."""
    before, comma, last = incomplete.rpartition(",")
    found = (
        (f"{before}{comma}{task}", component.spec.name)
        for component in _components(TaskPoolSpec)
        for task in component.spec.tasks
        if task.startswith(last)
    )
    return list(dict(found).items())


def _names(kind: type[ComponentSpec]) -> Iterator[tuple[str, str]]:
    return ((component.spec.name, component.spec.summary) for component in _components(kind))


def _components(kind: type[SpecT]) -> Iterator[Component[SpecT]]:
    """Return what is installed; nothing where the command itself would say what is wrong."""
    try:
        return load_plugins().components(kind)
    except PluginError:
        return iter(())


def _starting(incomplete: str, names: Iterator[tuple[str, str]]) -> Candidates:
    return [pair for pair in names if pair[0].startswith(incomplete)]
