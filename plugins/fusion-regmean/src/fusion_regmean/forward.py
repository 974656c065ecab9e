"""Blocks of layers in forward order, to be solved one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_regmean.experts import tasks_of
from fusion_regmean.live import examples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core import ModelPool, RunContext
    from fusion_regmean.live import Live


@dataclass(frozen=True)
class Block:
    """Tensors whose names are the same up to the first number in them: a transformer's layer.

    A tensor without a number in its name is a block of its own.
    """

    name: str
    #: the first names of its layers' weights, in the order of calls
    layers: Sequence[str]
    #: its parameters; none where it is one tensor, which does not make its own inputs
    members: Sequence[str]


def blocks_of(live: Live, pool: ModelPool[Any], context: RunContext) -> list[Block]:
    """Return the blocks in the order in which some expert's task calls them first."""
    called: dict[str, None] = {}
    for expert in pool.experts:
        task = tasks_of(context).adaptive(pool.task_of(expert))
        for batch in examples(task, 1, context):
            live.show(task, batch, lambda _layer, name, _inputs: called.setdefault(name))
    blocks: dict[str, list[str]] = {}
    for name in called:
        blocks.setdefault(_block_of(name), []).append(name)
    return [Block(name, layers, _members(live, name)) for name, layers in blocks.items()]


def _members(live: Live, block: str) -> list[str]:
    return [name for name in live.parameters if name != block == _block_of(name)]


def _block_of(name: str) -> str:
    """Return a tensor's name up to the first number in it."""
    parts = name.split(".")
    first = next((n for n, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: first + 1])
