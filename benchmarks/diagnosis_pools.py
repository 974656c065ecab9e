"""The pools that rules are looked at on, and those that their hit rates are of.

Subsets of `mini8`, of one set of experts each, some with one expert twice as far from the base,
some with task vectors of a low rank; small networks (`diagnosis_toys.py`); and `lm-mini`. What was
looked at are the first seeds of the former two.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from diagnosis_toys import KINDS, make

from fusion_core import RunOptions, load_models, plan
from fusion_core.weights import (
    Linear,
    MergedSource,
    Operands,
    StateDictSource,
    decompose,
    is_matrix,
)
from pools_mini.files import DATA
from pools_mini.plugin import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from fusion_core import ModelPool, TaskPool, WeightSource

    Pair = tuple[ModelPool[Any], TaskPool[Any]]

SHIPPED = 3
LOOKED_AT, HELD_OUT = (0, 1, 2), (3, 4, 5)
#: Test images of a task.
LIMIT = 300
#: How many experts the pools of a seed have.
_SIZES = {0: (2, 4, 8, 5), 1: (3, 6, 7, 2), 2: (4, 5, 3, 8), 3: (2, 4, 8, 5), 4: (3, 6, 7, 2)}
_SIZES[5] = (4, 5, 3, 8)
_RANK = 8
#: What is measured of language models, and of how many test lines.
_LM_TASKS = (
    ("scripture", "kinds", "speech", "reverse", "roman", "past"),
    ("kinds", "reverse"),
    ("speech", "roman", "past"),
    ("scripture", "kinds", "speech", "past"),
)
_LM_LIMIT = 100
#: Toys of each kind in each half; of what cannot be merged, fewer.
_TOYS = dict.fromkeys(KINDS, 5) | {"permuted": 3, "strangers": 3}


@dataclass(frozen=True)
class Case:
    """A pool, made when it is measured."""

    name: str
    kind: str
    is_held_out: bool
    make: Callable[[], Pair]


def cases(experts: Path) -> Iterator[Case]:
    """Yield all pools; `experts` holds the sets that plugins/pools-mini/build/experts.py wrote."""
    for seed in (*LOOKED_AT, *HELD_OUT):
        yield from _of_mini8(seed, experts)
    yield from _of_lm_mini()
    for half in (False, True):
        for kind, count in _TOYS.items():
            for number in range(count):
                seed = 1000 * half + 100 * [*KINDS].index(kind) + number
                size = random.Random(seed).randint(2, 8)
                name = f"toys, {kind}, seed {seed}, {size} experts"
                yield Case(name, f"toys, {kind}", half, partial(_toys, kind, size, seed))


def _of_lm_mini() -> Iterator[Case]:
    """Yield the language models that ship, all six and some of them."""
    for tasks in _LM_TASKS:
        chosen = {"name": "lm-mini", "tasks": list(tasks)}
        limited = {**chosen, "limit": _LM_LIMIT}
        made = partial(_planned, {"model_pool": chosen, "task_pool": limited})
        yield Case(f"lm-mini: {', '.join(tasks)}", "lm-mini", is_held_out=True, make=made)


def _toys(kind: str, size: int, seed: int) -> Pair:
    models, tasks = make(KINDS[kind], size, seed)
    return _planned({"model_pool": models, "task_pool": tasks})


def _of_mini8(seed: int, experts: Path) -> Iterator[Case]:
    """Yield four subsets as they are, one with an expert that went farther, one of low rank."""
    drawn = random.Random(seed)
    changes = {"mini8": _SIZES[seed], "mini8, one longer": (4,), "mini8, low rank": (5,)}
    for kind, sizes in changes.items():
        for size in sizes:
            names = drawn.sample(TASKS, size)
            make_one = partial(_mini8, kind, names, seed, experts)
            said = f"{kind}, seed {seed}: {', '.join(names)}"
            yield Case(said, kind, seed in HELD_OUT, make_one)


def _mini8(kind: str, names: Sequence[str], seed: int, experts: Path) -> Pair:
    models = {task: str(experts / str(seed) / task) for task in names}
    pool = {"name": "clip", "base": str(DATA / "base"), "models": models}
    if seed == SHIPPED:
        pool = {"name": "mini8", "tasks": list(names)}
    tasks = {"name": "mini8", "tasks": list(names), "limit": LIMIT}
    found, own = _planned({"model_pool": pool, "task_pool": tasks})
    if kind == "mini8, one longer":
        found = found.with_sources({names[0]: _longer(found, names[0])})
    if kind == "mini8, low rank":
        found = found.with_sources({name: _truncated(found, name) for name in names})
    return found, own


def _planned(recipe: dict[str, Any]) -> Pair:
    planned = plan({"algorithm": "simple-average", **recipe}, RunOptions())
    assert planned.tasks is not None
    return load_models(planned), planned.tasks


def _longer(pool: ModelPool[Any], name: str) -> WeightSource:
    return MergedSource(Linear((2.0,)), Operands(pool.base, {name: pool.experts[name]}))


def _truncated(pool: ModelPool[Any], name: str) -> WeightSource:
    assert pool.base is not None
    base, expert = pool.base.state_dict(), pool.experts[name].state_dict()
    for key, own in base.items():
        if is_matrix(own.shape) and own.is_floating_point():
            delta = expert[key].float() - own.float()
            expert[key] = (own.float() + decompose(delta).largest(_RANK).product()).to(own.dtype)
    return StateDictSource(expert, label=name)
