"""Checks of `identity` and `inputs`, which must change exactly when scores might change."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fusion_core.contracts.batch import Split
from fusion_core.errors import FusionError
from fusion_testing._component import ComponentSuite
from fusion_testing._examples import adaptive_tasks, read
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.recipe.config import ComponentConfig

    Remake = Callable[..., TaskPool[Any]]

#: Suffixes of files with examples.
_DATA = {".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".npy", ".npz", ".pt"}


class IdentityChecks(ComponentSuite):
    """Checks of `identity`, `inputs` and `conditions`; part of `TaskPoolSuite`."""

    def test_an_identity_is_the_same_while_nothing_changes(
        self, make: Callable[[], TaskPool[Any]]
    ) -> None:
        """`identity` is JSON data and the same on every call: scores are remembered by it."""
        one, other = make(), make()
        for name in one.names:
            try:
                first, second = (json.dumps(pool.identity(name)) for pool in (one, other))
            except TypeError as error:
                fail(
                    f"{name}: `identity` is not JSON data: {error}",
                    "Use text, numbers, lists and mappings.",
                )
            if first != second:
                fail(
                    f"{name}: `identity` differs between two equal pools: {first} and {second}.",
                    "Use only the options and the data in `identity`.",
                )

    def test_inputs_and_conditions_can_be_recorded(self, pool: TaskPool[Any]) -> None:
        """`inputs` and the `conditions` of tasks are JSON data, for provenance and reports."""
        for what, value in {
            "`inputs`": pool.inputs(),
            **{f"the `conditions` of {task.name}": dict(task.conditions) for task in pool},
        }.items():
            try:
                json.dumps(value)
            except TypeError as error:
                fail(f"{what}: not JSON data: {error}", "Use text, numbers, lists and mappings.")

    def test_an_identity_changes_with_the_options(
        self, config: ComponentConfig, remake: Remake
    ) -> None:
        """An option that changes the test examples changes `identity`."""
        pool = remake()
        _skip_without_identity(pool)
        before = _test_examples(pool)
        for option, value in _other_options(config):
            try:
                changed = remake(**{option: value})
                after = _test_examples(changed)
            except FusionError:
                continue  # the pool refuses the value
            for name in before.keys() & after.keys():
                if before[name] != after[name] and pool.identity(name) == changed.identity(name):
                    fail(
                        f"{name}: {option}={value!r} changes the test examples, but not "
                        "`identity`.",
                        f"Add {option} to `identity`: scores are remembered by it.",
                    )

    def test_an_identity_changes_with_the_data(
        self, config: ComponentConfig, make: Callable[[], TaskPool[Any]]
    ) -> None:
        """Changing a file that the options name changes the `identity` of at least one task."""
        _skip_without_identity(make())
        files = _list_data(config)
        before = {name: make().identity(name) for name in make().names}
        changed = False
        for file in files:
            with _extended(file):
                try:
                    pool = make()
                    changed |= any(pool.identity(name) != before[name] for name in before)
                except FusionError:
                    changed = True  # refused, so no score is remembered
        if not changed:
            fail(
                "no `identity` changes when a data file changes.",
                "Add the size and time of every file, as fusion_core.files.file_stamps returns "
                "them.",
            )

    def test_inputs_change_with_the_data(
        self, config: ComponentConfig, make: Callable[[], TaskPool[Any]]
    ) -> None:
        """Changing a file that the options name changes `inputs`, which provenance records."""
        files = _list_data(config)
        before = json.dumps(make().inputs())
        for file in files:
            with _extended(file), suppress(FusionError):
                if json.dumps(make().inputs()) != before:
                    return
        fail(
            "`inputs` does not change when a data file changes.",
            "Add the hash of every file, as fusion_core.files.hash_files returns them.",
        )


def _list_data(config: ComponentConfig) -> list[Path]:
    """Return the files of examples that options name, or skip the check if there are none."""
    texts = _texts(config.model_dump(mode="json"))
    files = [Path(text) for text in texts if _is_temporary(text)]
    if not files:
        pytest.skip(
            "no option names a file of examples in a temporary directory, where it may be changed"
        )
    return files


def _skip_without_identity(pool: TaskPool[Any]) -> None:
    if all(pool.identity(name) is None for name in pool.names):
        pytest.skip("`identity` is None: no scores are remembered")


def _test_examples(pool: TaskPool[Any]) -> dict[str, Any]:
    tasks = {task.name: read(task, Split.TEST) for task in adaptive_tasks(pool)}
    return {name: sorted(zip(test.keys, test.labels, strict=True)) for name, test in tasks.items()}


def _other_options(config: ComponentConfig) -> Iterator[tuple[str, Any]]:
    """Yield other values for numeric, boolean and unset numeric options."""
    for option, field in type(config).model_fields.items():
        value = getattr(config, option)
        if isinstance(value, bool):
            yield option, not value
        elif isinstance(value, int):
            yield option, value + 1
            yield option, value // 2
        elif value is None and "int" in str(field.annotation):
            yield option, 7


def _texts(value: object) -> Iterator[str]:
    """Yield all texts in JSON data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _is_temporary(text: str) -> bool:
    path = Path(text)
    home = Path(tempfile.gettempdir()).resolve()
    return path.suffix in _DATA and path.is_file() and home in path.resolve().parents


@contextmanager
def _extended(file: Path) -> Iterator[None]:
    """Append an empty line to a file, and restore the file afterwards."""
    content, state = file.read_bytes(), file.stat()
    try:
        file.write_bytes(content + b"\n")
        yield
    finally:
        file.write_bytes(content)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
