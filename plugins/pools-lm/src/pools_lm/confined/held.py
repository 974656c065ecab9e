"""The parent's side: a tokenizer that a child process holds, and the limits of what it does.

What the child answers is checked as any data is. What it does not survive is an error that names
the model and the file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from fusion_core.errors import CheckpointError
from fusion_core.files import Confined, Limits, Overrun, Refused
from pools_lm.beside import content_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core.weights import Files

T = TypeVar("T")

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"

_MB = 10**6
#: For a file of at most 50 MB and a million tokens, and for one request of the sizes below.
READING = Limits(seconds=60, memory=2000 * _MB, answer=256 * _MB)
TOKENIZING = Limits(seconds=60, memory=1500 * _MB, answer=64 * _MB)
RENDERING = Limits(seconds=20, memory=500 * _MB, answer=16 * _MB)
#: What one request holds at most, unless a single text is longer.
_CHARACTERS, _TEXTS = 500_000, 1000
_LOOK = (
    "The file came with the model, and may be damaged or hostile: look at its regular expressions, "
    "or use the tokenizer of a model that you trust."
)

#: One child for all tokenizers of a process.
_CHILD = Confined("pools_lm.confined.reader:serve")


@dataclass(frozen=True)
class Held:
    """A tokenizer that the child reads from a model's files, and again if it has lost it."""

    files: Files
    #: what to call the model in errors
    model: str
    #: the function of the child that reads it
    read_by: str
    #: tells its files from others
    digest: str

    @classmethod
    def of(cls, files: Files, model: str, read_by: str) -> Held:
        """Name a tokenizer; the child is started, and nothing is read yet."""
        _CHILD.start()
        return cls(files, model, read_by, digest_of(files))

    @property
    def name(self) -> str:
        """What to call the tokenizer in errors, with its file."""
        known = (TOKENIZER, SETTINGS, *self.files)
        return f"its tokenizer ({next((name for name in known if name in self.files), 'missing')})"

    def read(self, answer: TypeAdapter[T]) -> T:
        """Have the child read the files, and return what it says of them.

        Raises `CheckpointError` for a limit, `Refused` for files that cannot be read.
        """
        with TemporaryDirectory() as folder:
            for name in self.files:
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content_in(self.files, name))
            what = f"reading {self.name}"
            return self._asked({"do": self.read_by, "folder": folder}, READING, answer, what, _LOOK)

    def ask(  # noqa: PLR0913 - the request, its limits, and what to say where it hits one
        self,
        do: str,
        options: Mapping[str, Any],
        answer: TypeAdapter[T | None],
        limits: Limits,
        *,
        what: str | None = None,
        hint: str = _LOOK,
    ) -> T:
        """Have the child do something by the tokenizer.

        Raises `CheckpointError` saying `what` hit a limit, and `hint`; `Refused` for an exception.
        """
        request, what = {"do": do, **options}, what or f"work by {self.name}"
        found = self._asked(request, limits, answer, what, hint)
        if found is None:  # it is another child than the one that read it
            self.read(_ANYTHING)
            found = self._asked(request, limits, answer, what, hint)
        if found is None:
            raise CheckpointError(f"{self.model}: {what} gave no answer", hint=hint)
        return found

    def work(
        self,
        do: str,
        options: Mapping[str, Any],
        answer: TypeAdapter[list[T] | None],
        count: int,
    ) -> list[T]:
        """Have the child work on some texts, and return as many answers.

        Raises `CheckpointError` for a limit, and for a tokenizer that fails.
        """
        try:
            found: list[T] = self.ask(do, options, answer, TOKENIZING)
        except Refused as error:
            raise CheckpointError(
                f"{self.model}: {self.name} fails on a text: {error}",
                hint="Save it with transformers anew, or use the tokenizer of another model.",
            ) from error
        if len(found) != count:
            raise CheckpointError(f"{self.model}: {self.name} left texts out", hint=_LOOK)
        return found

    def _asked(
        self,
        request: Mapping[str, Any],
        limits: Limits,
        answer: TypeAdapter[T],
        what: str,
        hint: str,
    ) -> T:
        key = f"{self.read_by} {self.digest}"
        try:
            return answer.validate_json(_CHILD.ask({"key": key, **request}, limits))
        except Overrun as error:
            raise CheckpointError(f"{self.model}: {what} {error}", hint=hint) from error
        except ValidationError as error:
            _CHILD.close()
            said = f"{self.model}: {what} gave an answer that makes no sense"
            raise CheckpointError(said, hint=hint) from error


_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)


def in_parts(sizes: Sequence[int]) -> Iterator[slice]:
    """Cut texts of some sizes into the parts that one request may hold."""
    start = total = 0
    for place, size in enumerate(sizes):
        if place > start and (total + size > _CHARACTERS or place - start == _TEXTS):
            yield slice(start, place)
            start, total = place, 0
        total += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def digest_of(files: Files) -> str:
    """Tell files apart by their names and content."""
    found = hashlib.sha256()
    for name in sorted(files):
        data = content_in(files, name)
        found.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
    return found.hexdigest()
