"""Blocks of layers in forward order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_regmean.live_model import examples
from fusion_regmean.sources import tasks_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core import ModelPool, RunContext
    from fusion_regmean.live_model import LiveModel


@dataclass(frozen=True)
class Block:
    """Tensors with the same name up to its first number, such as a transformer's layer.

    A tensor without a number in its name is a block on its own.
    """

    name: str
    #: the first names of its layers' weights: those called first in the order of calls
    layers: Sequence[str]
    #: its parameters; empty for a single tensor, which does not compute its own inputs
    members: Sequence[str]


def blocks_of(live: LiveModel, pool: ModelPool[Any], context: RunContext) -> list[Block]:
    """Return the blocks in the order of their first calls by the experts' tasks."""
    called: dict[str, None] = {}
    for expert in pool.experts:
        task = tasks_of(context).adaptive(pool.task_of(expert))
        for batch in examples(task, 1, context):
            live.observe(task, batch, lambda _layer, name, _inputs: called.setdefault(name))
    layers: dict[str, list[str]] = {}
    for name in called:
        layers.setdefault(_block_name(name), []).append(name)
    for name in (*live.layers.values(), *live.packed.tied_names):
        if name not in called and _block_name(name) in layers:  # such as experts not chosen yet
            layers[_block_name(name)].append(name)
    members: dict[str, list[str]] = {}
    for name in live.tensors:
        block = _block_name(name)
        if name != block:
            members.setdefault(block, []).append(name)
    return [Block(block, names, members.get(block, [])) for block, names in layers.items()]


def _block_name(tensor: str) -> str:
    """Return a tensor's name up to the first number in it."""
    parts = tensor.split(".")
    first = next((index for index, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: first + 1])
