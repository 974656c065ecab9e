"""Completion of component names. It imports no more than `fuse list-plugins` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from fusion_core.contracts.specs import (
    AlgorithmSpec,
    ComponentSpec,
    PipelineSpec,
    TaskPoolSpec,
)
from fusion_core.errors import PluginError
from fusion_core.plugins.manager import load_plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SpecT = TypeVar("SpecT", bound=ComponentSpec)
Candidates = list[tuple[str, str]]


def algorithms(incomplete: str) -> Candidates:
    """Complete the last of a comma-separated list of stages."""
    before, comma, last = incomplete.rpartition(",")
    stages = [*_complete(last, AlgorithmSpec), *_complete(last, PipelineSpec)]
    return [(f"{before}{comma}{name}", summary) for name, summary in stages]


def names_of(kind: type[ComponentSpec]) -> Callable[[str], Candidates]:
    """Return a function that completes the name of a component of a kind."""

    def complete(incomplete: str) -> Candidates:
        return _complete(incomplete, kind)

    return complete


def tasks(incomplete: str) -> Candidates:
    """Complete the last of a comma-separated list of tasks."""
    before, comma, last = incomplete.rpartition(",")
    pools = {
        f"{before}{comma}{task}": spec.name
        for spec in _specs(TaskPoolSpec)
        for task in spec.tasks
        if task.startswith(last)
    }
    return list(pools.items())


def _complete(incomplete: str, kind: type[ComponentSpec]) -> Candidates:
    return [(spec.name, spec.summary) for spec in _specs(kind) if spec.name.startswith(incomplete)]


def _specs(kind: type[SpecT]) -> Iterator[SpecT]:
    """Yield installed specs, or none if plugins are misconfigured, which the command reports."""
    try:
        plugins = load_plugins()
    except PluginError:
        return
    yield from (component.spec for component in plugins.components(kind))
