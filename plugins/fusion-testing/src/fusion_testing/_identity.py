"""Checks of `identity` and `inputs`: they change where figures might, and only there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

#: Suffixes of files that hold examples.
_DATA = {".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".npy", ".npz", ".pt"}


class IdentityChecks(ComponentSuite):
    """What `identity`, `inputs` and `conditions` keep; a part of `TaskPoolSuite`."""

    def test_an_identity_is_the_same_while_nothing_changes(
        self, make: Callable[[], TaskPool[Any]]
    ) -> None:
        """Figures are remembered by `identity`: JSON's data, and the same every time."""
        one, other = make(), make()
        for name in one.names:
            try:
                first, second = (json.dumps(pool.identity(name)) for pool in (one, other))
            except TypeError as error:
                fail(f"{name}: `identity` is not JSON's data: {error}", "Use text and numbers.")
            if first != second:
                fail(
                    f"{name}: `identity` changes: {first}, {second}.",
                    "Name what figures depend on.",
                )

    def test_inputs_and_conditions_can_be_recorded(self, pool: TaskPool[Any]) -> None:
        """`inputs` and each task's `conditions` are JSON's data, for provenance and report."""
        for what, value in {
            "`inputs`": pool.inputs(),
            **{f"the `conditions` of {task.name}": dict(task.conditions) for task in pool},
        }.items():
            try:
                json.dumps(value)
            except TypeError as error:
                fail(f"{what}: not JSON's data: {error}", "Use text, numbers, lists and mappings.")

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
                continue  # a value that the pool refuses
            for name in before.keys() & after.keys():
                if before[name] != after[name] and pool.identity(name) == changed.identity(name):
                    fail(
                        f"{name}: with {option}={value!r} the test examples are others, and "
                        "`identity` is the same.",
                        f"Add {option} to `identity`: figures are remembered by it.",
                    )

    def test_an_identity_changes_with_the_data(
        self, config: ComponentConfig, make: Callable[[], TaskPool[Any]]
    ) -> None:
        """A change of a file that the options name changes `identity`, of one task at least."""
        _skip_without_identity(make())
        files = [Path(text) for text in _texts(config.model_dump(mode="json")) if _is_ours(text)]
        if not files:
            pytest.skip(
                "no option names a file of examples in a temporary directory, which may be changed"
            )
        before = {name: make().identity(name) for name in make().names}
        changed = False
        for file in files:
            with _grown(file):
                try:
                    pool = make()
                    changed |= any(pool.identity(name) != before[name] for name in before)
                except FusionError:
                    changed = True  # refused, so nothing is remembered
        if not changed:
            fail(
                "no `identity` changes when data files do.",
                "Add sizes and times of the files, as fusion_core.files.file_stamps returns them.",
            )


def _skip_without_identity(pool: TaskPool[Any]) -> None:
    if all(pool.identity(name) is None for name in pool.names):
        pytest.skip("`identity` is None: the base and the experts are measured in every run")


def _test_examples(pool: TaskPool[Any]) -> dict[str, Any]:
    tasks = {task.name: read(task, Split.TEST) for task in adaptive_tasks(pool)}
    return {name: sorted(zip(each.keys, each.labels, strict=True)) for name, each in tasks.items()}


def _other_options(config: ComponentConfig) -> Iterator[tuple[str, Any]]:
    """Yield other values of options that are numbers, switches, or a number that is not given."""
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
    """Yield the texts in JSON's data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _is_ours(text: str) -> bool:
    path = Path(text)
    home = Path(tempfile.gettempdir()).resolve()
    return path.suffix in _DATA and path.is_file() and home in path.resolve().parents


@contextmanager
def _grown(file: Path) -> Iterator[None]:
    """Make a file longer by an empty line, for a while."""
    content, state = file.read_bytes(), file.stat()
    try:
        file.write_bytes(content + b"\n")
        yield
    finally:
        file.write_bytes(content)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
