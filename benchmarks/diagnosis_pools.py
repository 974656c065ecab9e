"""The pools on which rules of diagnosis are made (looked at) and tested (held out).

They are subsets of `mini8` from one set of experts each, some with one expert twice as far from the
base, some with task vectors of low rank; small networks (`diagnosis_toys.py`); and `lm-mini`. The
first seeds of `mini8` and of the networks were looked at.
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
#: The number of test images per task.
LIMIT = 300
#: The numbers of experts in the pools of a seed.
_SIZES = {0: (2, 4, 8, 5), 1: (3, 6, 7, 2), 2: (4, 5, 3, 8), 3: (2, 4, 8, 5), 4: (3, 6, 7, 2)}
_SIZES[5] = (4, 5, 3, 8)
_RANK = 8
#: The tasks for language models, and the number of test lines.
_LM_TASKS = (
    ("scripture", "kinds", "speech", "reverse", "roman", "past"),
    ("kinds", "reverse"),
    ("speech", "roman", "past"),
    ("scripture", "kinds", "speech", "past"),
)
_LM_LIMIT = 100
#: Toys of each kind per half; fewer of kinds that cannot be merged.
_TOYS = dict.fromkeys(KINDS, 5) | {"permuted": 3, "strangers": 3}


@dataclass(frozen=True)
class Case:
    """A pool that is made when it is measured."""

    name: str
    kind: str
    is_held_out: bool
    make: Callable[[], Pair]


def cases(experts: Path) -> Iterator[Case]:
    """Yield all pools. `experts` has the output of plugins/pools-mini/build/experts.py."""
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
    """Yield pools of the shipped language models: subsets and all six."""
    for tasks in _LM_TASKS:
        chosen = {"name": "lm-mini", "tasks": list(tasks)}
        limited = {**chosen, "limit": _LM_LIMIT}
        make_pair = partial(_planned, {"model_pool": chosen, "task_pool": limited})
        yield Case(f"lm-mini: {', '.join(tasks)}", "lm-mini", is_held_out=True, make=make_pair)


def _toys(kind: str, size: int, seed: int) -> Pair:
    models, tasks = make(KINDS[kind], size, seed)
    return _planned({"model_pool": models, "task_pool": tasks})


def _of_mini8(seed: int, experts: Path) -> Iterator[Case]:
    """Yield four plain subsets, one with a longer task vector, and one of low rank."""
    drawn = random.Random(seed)
    changes = {"mini8": _SIZES[seed], "mini8, one longer": (4,), "mini8, low rank": (5,)}
    for kind, sizes in changes.items():
        for size in sizes:
            names = drawn.sample(TASKS, size)
            make_one = partial(_mini8, kind, names, seed, experts)
            label = f"{kind}, seed {seed}: {', '.join(names)}"
            yield Case(label, kind, seed in HELD_OUT, make_one)


def _mini8(kind: str, names: Sequence[str], seed: int, experts: Path) -> Pair:
    models = {task: str(experts / str(seed) / task) for task in names}
    pool = {"name": "clip", "base": str(DATA / "base"), "models": models}
    if seed == SHIPPED:
        pool = {"name": "mini8", "tasks": list(names)}
    tasks = {"name": "mini8", "tasks": list(names), "limit": LIMIT}
    model_pool, task_pool = _planned({"model_pool": pool, "task_pool": tasks})
    if kind == "mini8, one longer":
        model_pool = model_pool.with_sources({names[0]: _longer(model_pool, names[0])})
    if kind == "mini8, low rank":
        model_pool = model_pool.with_sources({name: _truncated(model_pool, name) for name in names})
    return model_pool, task_pool


def _planned(recipe: dict[str, Any]) -> Pair:
    planned = plan({"algorithm": "simple-average", **recipe}, RunOptions())
    assert planned.tasks is not None
    return load_models(planned), planned.tasks


def _longer(pool: ModelPool[Any], name: str) -> WeightSource:
    return MergedSource(Linear((2.0,)), Operands(pool.base, {name: pool.experts[name]}))


def _truncated(pool: ModelPool[Any], name: str) -> WeightSource:
    assert pool.base is not None
    base, expert = pool.base.state_dict(), pool.experts[name].state_dict()
    for key, tensor in base.items():
        if is_matrix(tensor.shape) and tensor.is_floating_point():
            delta = expert[key].float() - tensor.float()
            expert[key] = (tensor.float() + decompose(delta).largest(_RANK).product()).to(
                tensor.dtype
            )
    return StateDictSource(expert, label=name)
