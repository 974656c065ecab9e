"""The parent's side: requests to a tokenizer in the child process, and their limits.

The parent validates every answer like any untrusted data. An error names the model, and the file
that exceeded a limit or broke the child.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from fusion_core.errors import CheckpointError
from pools_checkpoints import LimitExceeded, Limits, SandboxedWorker, WorkFailed
from pools_lm.side_files import read_content

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core.weights import Files

T = TypeVar("T")

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"

_MB = 10**6
#: Limits for a file of at most 50 MB and a million tokens, and for one batch of texts.
READING = Limits(seconds=60, memory=2000 * _MB, answer=256 * _MB)
TOKENIZING = Limits(seconds=60, memory=1500 * _MB, answer=64 * _MB)
RENDERING = Limits(seconds=20, memory=500 * _MB, answer=16 * _MB)
#: Maximum size of one batch, unless a single text is longer.
_CHARACTERS, _TEXTS = 500_000, 1000
_INSPECT = (
    "The file came with the model, and may be damaged or hostile. Look at its regular expressions, "
    "or use the tokenizer of a model that you trust."
)

#: One child for all tokenizers of this process.
_CHILD = SandboxedWorker("pools_lm.confined.worker:serve")


@dataclass(frozen=True)
class TokenizerClient:
    """A tokenizer in the child process, which reads it again after a restart."""

    files: Files
    #: the model's name in errors
    model: str
    #: the child's function that reads the files
    reader: str
    #: digest of the files
    digest: str

    @classmethod
    def of(cls, files: Files, model: str, reader: str) -> TokenizerClient:
        """Start the child; nothing is read yet."""
        _CHILD.start()
        return cls(files, model, reader, _digest_files(files))

    @property
    def label(self) -> str:
        """The tokenizer and its file, for errors."""
        candidates = (TOKENIZER, SETTINGS, *self.files)
        name = next((name for name in candidates if name in self.files), "missing")
        return f"its tokenizer ({name})"

    def read(self, answer: TypeAdapter[T]) -> T:
        """Let the child read the files, and return its description of them.

        Raises `CheckpointError` for an exceeded limit, `WorkFailed` for unreadable files.
        """
        with TemporaryDirectory() as directory:
            for name in self.files:
                path = Path(directory, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(read_content(self.files, name))
            request = {"do": self.reader, "directory": directory}
            return self._send(request, READING, answer, f"reading {self.label}", _INSPECT)

    def ask(  # noqa: PLR0913 - the request, its limits, and the error if it exceeds one
        self,
        do: str,
        options: Mapping[str, Any],
        answer: TypeAdapter[T | None],
        limits: Limits,
        *,
        action: str | None = None,
        hint: str = _INSPECT,
    ) -> T:
        """Call a function of the child with the tokenizer.

        Raises `CheckpointError` with `action` and `hint` for an exceeded limit, and `WorkFailed`
        for an exception in the child.
        """
        request, action = {"do": do, **options}, action or f"work by {self.label}"
        value = self._send(request, limits, answer, action, hint)
        if value is None:  # the child was restarted, and has lost the tokenizer
            self.read(_ANYTHING)
            value = self._send(request, limits, answer, action, hint)
        if value is None:
            raise CheckpointError(f"{self.model}: {action} gave no answer", hint=hint)
        return value

    def map_texts(
        self, do: str, texts: Sequence[str], answer: TypeAdapter[list[T] | None], **options: bool
    ) -> list[T]:
        """Call a function of the child on batches of texts; raise as `ask_batch` does."""
        answers: list[T] = []
        for part in split_batches(list(map(len, texts))):
            batch = list(texts[part])
            answers += self.ask_batch(do, {"texts": batch, **options}, answer, len(batch))
        return answers

    def ask_batch(
        self,
        do: str,
        options: Mapping[str, Any],
        answer: TypeAdapter[list[T] | None],
        count: int,
    ) -> list[T]:
        """Call a function of the child on one batch, and return `count` answers.

        Raises `CheckpointError` for an exceeded limit and for a tokenizer that fails.
        """
        try:
            answers: list[T] = self.ask(do, options, answer, TOKENIZING)
        except WorkFailed as error:
            raise CheckpointError(
                f"{self.model}: {self.label} fails on a text: {error}",
                hint="Save it with transformers again, or use another model's tokenizer.",
            ) from error
        if len(answers) != count:
            raise CheckpointError(
                f"{self.model}: {self.label} gave {len(answers)} answers for {count} texts",
                hint=_INSPECT,
            )
        return answers

    def _send(
        self,
        request: Mapping[str, Any],
        limits: Limits,
        answer: TypeAdapter[T],
        action: str,
        hint: str,
    ) -> T:
        key = f"{self.reader} {self.digest}"
        try:
            return answer.validate_json(_CHILD.ask({"key": key, **request}, limits))
        except LimitExceeded as error:
            raise CheckpointError(f"{self.model}: {action} {error}", hint=hint) from error
        except ValidationError as error:
            _CHILD.close()
            raise CheckpointError(
                f"{self.model}: {action} gave an invalid answer", hint=hint
            ) from error


_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)


def split_batches(sizes: Sequence[int]) -> Iterator[slice]:
    """Split texts of the given sizes into batches that fit into one request."""
    start = total = 0
    for position, size in enumerate(sizes):
        if position > start and (total + size > _CHARACTERS or position - start == _TEXTS):
            yield slice(start, position)
            start, total = position, 0
        total += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def _digest_files(files: Files) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        data = read_content(files, name)
        digest.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
    return digest.hexdigest()
