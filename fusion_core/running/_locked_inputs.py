"""The inputs of a locked recipe: models and data with their recorded hashes, or no run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from fusion_core.errors import IntegrityError
from fusion_core.running._identity import content_digest
from fusion_core.weights.source import collect_origins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fusion_core.planning.run_plan import Plan

    Digest = Callable[[bytes | Path], str]
    Digests = Mapping[str, Mapping[str, str]]

_MOST_PROBLEMS = 5
#: The most characters of a recorded value in a message. Commits are shown whole.
_LONGEST_VALUE = 120


def digest_inputs(plan: Plan) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of every file of a plan's models, by the names of model and file.

    Weights count, and the files beside them that describe the model. A model of a nested recipe is
    named `model/inner`. Each file is read once. Download the plan's files first.
    """
    return _digest_inputs(plan, cache(content_digest))


def check_lock(plan: Plan) -> None:
    """Raise `IntegrityError` if a locked recipe, or a nested one, has other inputs than recorded.

    Reads every file whole, once. Does nothing for a recipe without a lock.
    """
    _check_lock(plan, cache(content_digest))


def _digest_inputs(plan: Plan, digest: Digest) -> dict[str, dict[str, str]]:
    side_files = plan.pool.side_files()
    digests: dict[str, dict[str, str]] = {}
    for name in plan.pool.by_name:
        if name in plan.nested:
            inner_digests = _digest_inputs(plan.nested[name], digest)
            digests |= {f"{name}/{inner}": files for inner, files in inner_digests.items()}
        else:
            files = {**side_files.get(name, {}), **_weight_files(plan, name)}
            digests[name] = {file: digest(files[file]) for file in sorted(files)}
    return digests


def _check_lock(plan: Plan, digest: Digest) -> None:
    for nested in plan.nested.values():
        _check_lock(nested, digest)
    if not plan.is_locked:
        return
    lock = plan.resolved.recipe.lock
    problems = list(_compare(lock.files, _digest_inputs(plan, digest)))
    problems += compare_data(lock.tasks, plan.data, recorded_in="lock")
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        lines = problems[:_MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise IntegrityError(
            "\n".join(["the inputs differ from the lock of the recipe:", *lines]),
            hint="Restore the inputs, or accept the change: fuse lock RECIPE.",
        )


def compare_data(
    recorded: Mapping[str, Any], data: Mapping[str, Any], *, recorded_in: str
) -> list[str]:
    """Return one line per difference between recorded identities of data and those of `Plan.data`.

    Only tasks of `data` are compared: a run may use fewer than were recorded.
    """
    current: dict[str, Any] = json.loads(json.dumps(data))
    problems = [f"task {task} is not in the {recorded_in}" for task in current.keys() - recorded]
    for task in current.keys() & recorded:
        problems += _find_differences(f"task {task}:", recorded[task], current[task])
    return sorted(problems)


def _find_differences(where: str, before: object, now: object) -> Iterator[str]:
    """Yield one line per value that differs in two trees of JSON data."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from _find_differences(f"{where} {key}", before.get(key), now.get(key))
    elif before != now:
        yield f"{where}: expected {_shorten(before)}, got {_shorten(now)}"


def _shorten(value: object) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _weight_files(plan: Plan, name: str) -> dict[str, Path]:
    """Return the files of a model's weights, by name; by folder and name where names repeat."""
    source = plan.pool.by_name[name]
    for origin in collect_origins(source):
        _ = dict(origin.files)  # opens what is downloaded by now
    paths = [path for origin in collect_origins(source) for path in origin.stamps]
    names = [path.name for path in paths]
    return {
        path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}": path
        for path in paths
    }


def _compare(locked: Digests, actual: Digests) -> Iterator[str]:
    for model in sorted({*locked, *actual}):
        before, now = locked.get(model, {}), actual.get(model, {})
        for file in sorted({*before, *now}):
            if file not in now:
                yield f"{model}: {file} is missing"
            elif file not in before:
                yield f"{model}: {file} is not in the lock"
            elif before[file] != now[file]:
                expected, got = before[file][:12], now[file][:12]
                yield f"{model}: {file}: expected SHA-256 {expected}..., got {got}..."
