"""A second process with another hash seed, in which checks make pools again and compare them.

One process per hash seed serves the whole session, because importing torch takes seconds.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import subprocess
import sys
import traceback
from functools import lru_cache
from pathlib import Path
from pkgutil import resolve_name
from typing import IO, TYPE_CHECKING, Any, cast

from fusion_core.errors import FusionError
from fusion_core.recipe.validation import validate
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool

_HASH_SEEDS = tuple(range(1, 9))
#: The hash seeds of the processes that have been started.
_STARTED: set[int] = set()
_SERVE = "from fusion_testing._elsewhere import serve; serve()"
_PRINT_SET = "import sys; print(*set(sys.argv[1:]), sep='\\0')"


def call_elsewhere(function: str, *arguments: object, names: Sequence[str] = ()) -> Any:  # noqa: ANN401
    """Call `"module:function"` in the other process; arguments and result must be JSON data.

    A set of `names` has another order in that process. An error there fails the check.
    """
    process = _process(_seed_for(tuple(names)))
    request = {"call": function, "arguments": arguments, "cwd": str(Path.cwd())}
    stdin, stdout = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
    print(json.dumps({**request, "environment": dict(os.environ)}), file=stdin, flush=True)
    line = stdout.readline()
    if not line:
        _process.cache_clear()
        answer = {"error": f"the process exited with code {process.wait()}"}
    else:
        answer = json.loads(line)
    if "error" in answer:
        fail(
            f"the component fails in another process:\n{answer['error']}",
            "Fix the error above. Making the component must need its options alone.",
        )
    return answer["result"]


def serve() -> None:
    """Answer calls until standard input ends; redirect all other output to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    seed = os.environ["PYTHONHASHSEED"]
    for line in sys.stdin:
        request = json.loads(line)
        os.environ.clear()
        os.environ.update({**request["environment"], "PYTHONHASHSEED": seed})
        os.chdir(request["cwd"])
        try:
            answer = json.dumps({"result": resolve_name(request["call"])(*request["arguments"])})
        except Exception:  # noqa: BLE001 - report every error of a plugin
            answer = json.dumps({"error": traceback.format_exc()})
        print(answer, file=answers, flush=True)


def make_pool(
    target: str, config: str, options: Mapping[str, Any], models: str | None = None
) -> Any:  # noqa: ANN401 - a pool of either kind
    """Make a model or task pool from its options; bind it to pickled models if given."""
    pool = resolve_name(target)(validate(resolve_name(config), options))
    if models is None:
        return pool
    return pool.bind(pickle.loads(Path(models).read_bytes()))  # noqa: S301 - the suite wrote it


def tasks_elsewhere(*recipe: Any) -> dict[str, Any]:  # noqa: ANN401
    """Make a task pool and describe it."""
    return describe_tasks(make_pool(*recipe))


def describe_tasks(tasks: TaskPool[Any]) -> dict[str, Any]:
    """Return everything about a task pool that must be the same in every process."""
    from fusion_testing._examples import batch_digests

    names = list(tasks.names)
    description: dict[str, Any] = {
        "`names`": names,
        "`measured_on`": tasks.measured_on,
        "`transductive`": tasks.transductive,
        "`identity`": {name: tasks.identity(name) for name in sorted(names)},
        "`inputs`": tasks.inputs(),
        "a batch": batch_digests(tasks),
    }
    try:
        description["a batch of `holdout`"] = batch_digests(tasks.holdout(), size=1)
    except FusionError:
        description["a batch of `holdout`"] = None
    return description


def models_elsewhere(*recipe: Any) -> dict[str, Any]:  # noqa: ANN401
    """Make a model pool and describe it."""
    return describe_models(make_pool(*recipe))


def describe_models(models: ModelPool[Any]) -> dict[str, Any]:
    """Return everything about a model pool that must be the same in every process."""
    experts = list(models.experts)
    return {
        "`experts`": experts,
        "`task_of`": {name: models.task_of(name) for name in sorted(experts)},
        "`identity`": models.identity(),
        "`inputs`": models.inputs(),
    }


def heads_on(file: str, *pool: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the scores of saved features by each task's head."""
    import torch

    tasks = make_pool(*pool)
    features = torch.load(file, weights_only=True)
    with torch.no_grad():
        return {name: tasks[name].head(values).tolist() for name, values in features.items()}


@lru_cache
def _process(seed: int) -> subprocess.Popen[str]:
    _STARTED.add(seed)
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE],
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    for stream in (process.stdin, process.stdout):
        cast("IO[str]", stream).close()
    process.wait()


@lru_cache
def _seed_for(names: tuple[str, ...]) -> int:
    """Return a hash seed under which a set of names has another order than in this process.

    Prefer the seed of a process that has been started.
    """
    own_order = list(set(names))
    for seed in sorted(_HASH_SEEDS, key=lambda seed: seed not in _STARTED):
        order = subprocess.run(
            [sys.executable, "-S", "-c", _PRINT_SET, *names],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.rstrip("\n")
        if len(own_order) < 2 or order.split("\0") != own_order:  # noqa: PLR2004 - one name has one order
            return seed
    return _HASH_SEEDS[0]
