"""Examples from files: JSON lines and parquet with one field per column, and plain text.

A plain text file is one example. A split of a data set on the hub can replace a file; its parquet
files are downloaded.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any, cast

from fusion_core import hub
from fusion_core.errors import FusionError, RecipeError
from fusion_core.files import file_stamps, hash_files
from pools_checkpoints import find_split
from pools_lm.tasks.config import HUB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_TEXT, _PARQUET = ".txt", ".parquet"
_JSON = (".jsonl", ".ndjson", ".json")
_SPLIT = re.compile(rf"{HUB}(?P<name>[^/]+/[^/]+)(/(?P<config>[^/]+))?/(?P<split>[^/]+)")
#: The start of an attribute or an index in a field of a template.
_PART = re.compile(r"[.\[]")
_ONE_OBJECT = "Write one object per line: {...}"


class _Filler(Formatter):
    """Fills templates, and refuses values that no template means: null, lists and mappings."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        """Return the value of a field or of a part of it, and the field's name."""
        value, first = super().get_field(field_name, args, kwargs)
        if value is None:
            raise ValueError(f"{field_name} is null")
        if isinstance(value, list | dict):
            raise TypeError(f"{field_name} is a {'list' if isinstance(value, list) else 'mapping'}")
        return value, first


@dataclass(frozen=True)
class Line:
    """One example of a file."""

    #: the file, with the line or row
    location: str
    fields: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - any value of a file
        """Return a field; raise `FusionError` with the location if it is missing."""
        if name not in self.fields:
            raise FusionError(
                f"{self.location}: missing field {name!r}; fields: "
                f"{', '.join(self.fields) or 'none'}",
                hint="Name the fields of your file under task_pool.datasets.",
            )
        return self.fields[name]

    def index_in(
        self, texts: Sequence[str], field: str, *, of: str, noun: str, thing: str
    ) -> int | None:
        """Return the index of the text that a field means; None if it means none of the texts.

        The field holds the text or its index. Raises `FusionError` for a boolean, which says
        nothing about the order of the texts, and for a number that is the index of one text, and
        another text.
        """
        value = self[field]
        if isinstance(value, bool):
            raise FusionError(
                f"{self.location}: {field} is {str(value).lower()}, which is neither the {noun} "
                f"nor the {of} of a {thing}",
                hint=f"Write the {noun}, such as {texts[0]!r}, or the number, from 0.",
            )
        if not isinstance(value, int) or not 0 <= value < len(texts):
            return texts.index(value) if value in texts else None
        if texts[value] != str(value) in texts:
            raise FusionError(
                f"{self.location}: {field} {value} is the {of} of {thing} {texts[value]!r}, and "
                f"the {noun} of another {thing}",
                hint=f'Write the {noun} in quotes: "{texts[value]}" or "{value}".',
            )
        return value

    def has(self, answer: str) -> bool:
        """Tell whether a field, or every field of a template, has a value other than null."""
        names = [_PART.split(name)[0] for _, name, _, _ in Formatter().parse(answer) if name]
        return all(self.fields.get(name) is not None for name in names or [answer])

    def fill(self, template: str) -> str:
        """Return a template filled with the fields that it names in braces.

        Raises `FusionError` for a field that is missing or no single value, and for an unsuitable
        format.
        """
        try:
            return _Filler().vformat(template, (), cast("Mapping[str, Any]", self))
        except (ValueError, TypeError, LookupError) as error:
            reason = f"nothing at {error}" if isinstance(error, KeyError) else error
            raise FusionError(
                f"{self.location}: cannot fill {template!r}: {reason}",
                hint="Give every field a text or a number, or name a part of it, such as "
                "{choices[0]} or {messages[0][content]}. {field:.1f} needs a number.",
            ) from error


def find_on_hub(path: str) -> hub.FileRequest | None:
    """Return the files of a split on the hub, at its commit; None for a local file.

    Raises `RecipeError` for an invalid name, `HubError` if the hub refuses access.
    """
    if not path.startswith(HUB):
        return None
    match = _SPLIT.fullmatch(path)
    if match is None:
        raise RecipeError(
            f"invalid name of a data set's split: {path}",
            hint=f"Write {HUB}org/name/split, or {HUB}org/name/configuration/split.",
        )
    data_set = hub.parse(match["name"], kind="dataset")
    return find_split(data_set, match["split"], match["config"])


def identify_data(paths: Iterable[str]) -> dict[str, Any]:
    """Identify files by size and time, and splits on the hub by commit; raise `OSError`."""
    splits = {path: find_on_hub(path) for path in paths}
    return {
        **file_stamps(path for path, wanted in splits.items() if wanted is None),
        **{path: describe_data(path) for path, wanted in splits.items() if wanted is not None},
    }


def describe_data(path: str) -> dict[str, Any]:
    """Identify a file by its SHA-256, or a split on the hub by its commit, for the provenance."""
    wanted = find_on_hub(path)
    if wanted is None:
        return {"files": hash_files([path])}
    return {"data": str(wanted.reference), "files": wanted.paths}


def read_lines(path: str, limit: int | None = None) -> list[Line]:
    """Return the examples of a file, or of a split on the hub; at most the first `limit`.

    Raises `OSError` for an unreadable file, `FusionError` for an invalid line or an empty file, and
    `HubError` if the hub refuses access.
    """
    wanted = find_on_hub(path)
    files = [path] if wanted is None else hub.download_requests([wanted])
    try:
        lines = list(islice(chain.from_iterable(map(_read_file, files)), limit))
    except UnicodeDecodeError as error:
        raise FusionError(f"expected UTF-8 text in {path}: {error}") from error
    if not lines:
        raise FusionError(f"{path} contains no examples")
    return lines


def _read_file(path: str) -> Iterator[Line]:
    suffix = Path(path).suffix.lower()
    if suffix == _PARQUET:
        return _read_parquet(path)
    if suffix == _TEXT:
        return _read_text(path)
    if suffix in _JSON:
        return _read_json(path)
    raise FusionError(
        f"unsupported file type of {path}: expected JSON lines (.jsonl), parquet or plain text "
        "(.txt)",
        hint="Write one object per line, {...}, into a file that ends in .jsonl.",
    )


def _read_json(path: str) -> Iterator[Line]:
    with Path(path).open(encoding="utf-8-sig") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            location = f"{path}, line {number}"
            try:
                fields = json.loads(text)
                json.dumps(fields, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                raise FusionError(
                    f"{location}: invalid text: {error.reason}",
                    hint="An emoji in JSON is two \\u escapes. Write both, or the emoji itself.",
                ) from error
            except (ValueError, RecursionError) as error:
                raise FusionError(f"{location}: invalid JSON: {error}", hint=_ONE_OBJECT) from error
            if not isinstance(fields, dict):
                raise FusionError(f"{location}: expected a JSON object", hint=_ONE_OBJECT)
            yield Line(location, fields)


def _read_text(path: str) -> Iterator[Line]:
    with Path(path).open(encoding="utf-8-sig", newline="") as file:  # CRLF stays CRLF
        text = file.read()
    if text.strip():
        yield Line(path, {"text": text})


def _read_parquet(path: str) -> Iterator[Line]:
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
        raise FusionError(f"invalid parquet in {path} from row {row} on: {error}") from error
