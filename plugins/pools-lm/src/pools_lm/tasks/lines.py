"""Examples from files: JSON lines and parquet, a field a column; a plain text is one example.

In a file's place may stand a split of a data set on the hub, whose parquet files are downloaded.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

from fusion_core import hub
from fusion_core.errors import FusionError, RecipeError
from fusion_core.files import file_stamps
from pools_lm.tasks.config import HUB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_TEXT, _PARQUET = ".txt", ".parquet"
_JSON = (".jsonl", ".ndjson", ".json")
_SPLIT = re.compile(rf"{HUB}(?P<name>[^/]+/[^/]+)(/(?P<config>[^/]+))?/(?P<split>[^/]+)")


@dataclass(frozen=True)
class Line:
    """One example as a file has it."""

    #: the file and the line, or row, in it
    place: str
    fields: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - whatever a file holds
        """Return a field; raises `FusionError` naming the place if there is none."""
        if name not in self.fields:
            raise FusionError(
                f"{self.place} has no field {name!r}, only {', '.join(self.fields) or 'none'}",
                hint="Name the fields that there are under task_pool.datasets.",
            )
        return self.fields[name]

    def has(self, answer: str) -> bool:
        """Tell whether a field is there, or all that a template names."""
        named = [name for _, name, _, _ in Formatter().parse(answer) if name]
        return all(name in self.fields for name in named or [answer])

    def filled(self, template: str) -> str:
        """Return a template with the fields that it names in braces.

        Raises `FusionError` for one that cannot be filled with this line's.
        """
        try:
            return template.format_map(_Fields(self))
        except (ValueError, TypeError) as error:
            raise FusionError(
                f"{self.place} does not fill {template!r}: {error}",
                hint="A format such as {field:.1f} is for numbers.",
            ) from error


class _Fields(dict[str, Any]):
    def __init__(self, line: Line) -> None:
        self._line = line

    def __missing__(self, name: str) -> Any:  # noqa: ANN401
        return self._line[name]


def on_hub(path: str) -> hub.Wanted | None:
    """Return the files of a split on the hub, at its commit; None for a file that is here.

    Raises `RecipeError` for a name that is none, `HubError` for what the hub refuses.
    """
    if not path.startswith(HUB):
        return None
    found = _SPLIT.fullmatch(path)
    if found is None:
        raise RecipeError(
            f"{path} does not name a split of a data set",
            hint=f"Write {HUB}org/name/split, or {HUB}org/name/configuration/split.",
        )
    data = hub.parse(found["name"], kind="dataset")
    return hub.split_files(data, found["split"], found["config"])


def identities(paths: Iterable[str]) -> dict[str, Any]:
    """Identify files by sizes and times, splits on the hub by their commits; raises `OSError`."""
    splits = {path: on_hub(path) for path in paths}
    return {
        **file_stamps(path for path, wanted in splits.items() if wanted is None),
        **{
            path: {"data": str(wanted.reference), "files": wanted.paths}
            for path, wanted in splits.items()
            if wanted is not None
        },
    }


def read_lines(path: str, limit: int | None = None) -> list[Line]:
    """Return the examples of a file, or of a split on the hub, or the first `limit` of them.

    Raises `OSError` for a file that cannot be read, `FusionError` naming the line for one that is
    not of its kind, or the file where it holds nothing; `HubError` for what the hub refuses.
    """
    wanted = on_hub(path)
    files = [path] if wanted is None else hub.fetch([wanted])
    try:
        found = list(islice(chain.from_iterable(map(_lines, files)), limit))
    except UnicodeDecodeError as error:
        raise FusionError(f"{path} is not UTF-8: {error}") from error
    if not found:
        raise FusionError(f"{path} holds no examples")
    return found


def _lines(path: str) -> Iterator[Line]:
    kind = Path(path).suffix.lower()
    if kind not in (_TEXT, _PARQUET, *_JSON):
        raise FusionError(
            f"{path} is neither JSON lines (.jsonl), parquet nor plain text (.txt)",
            hint="Write an object a line, {...}, into a file that ends in .jsonl.",
        )
    read = _parquet if kind == _PARQUET else _text if kind == _TEXT else _json
    return read(path)


def _json(path: str) -> Iterator[Line]:
    with Path(path).open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                yield Line(f"{path}, line {number}", _object(text, f"{path}, line {number}"))


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FusionError(
            f"{place} is not JSON: {error}", hint="Write one object a line: {...}"
        ) from error
    if not isinstance(found, dict):
        raise FusionError(f"{place} is not an object", hint="Write one object a line: {...}")
    return found


def _text(path: str) -> Iterator[Line]:
    text = Path(path).read_text(encoding="utf-8")
    yield from [Line(path, {"text": text})] if text.strip() else []


def _parquet(path: str) -> Iterator[Line]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(256):
                for fields in batch.to_pylist():
                    yield Line(f"{path}, row {row}", fields)
                    row += 1
    except pa.ArrowException as error:
        raise FusionError(f"{path} is not readable parquet from row {row} on: {error}") from error
