"""Which token each number means to a model: read from its tokenizer's files, whatever the format.

Rows of embeddings are merged by number, so a number that means different tokens in two models makes
their merge meaningless. Appended tokens do no harm. Files of the same bytes are not parsed.
SentencePiece models are compared by their bytes alone: two that differ may be anything.
"""

from __future__ import annotations

import base64
import heapq
import re
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_core.weights.aligning._comparison import measure
from fusion_core.weights.aligning._cutting import BYTES_PER_VALUE, IGNORE, split_merges
from fusion_core.weights.aligning._difference import Doubt
from fusion_core.weights.aligning._models import is_same_content
from fusion_core.weights.reading.assets import content_of
from fusion_core.weights.reading.untrusted import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from fusion_core.weights.aligning._models import Model, Models

    Tokens = dict[int, str]

#: In bytes, without merges: Gemma's has 8 million.
_LARGEST_VOCABULARY = 20_000_000
_MOST_TOKENS = 1_000_000
_SHOWN, _MOST_DIGITS = 10, 18
#: Files that give every token's number, best first.
_MAIN = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
#: Tokenizers shift the numbers in these, so they are comparable among themselves alone.
_SHIFTED = ("sentencepiece.bpe.model", "spm.model", "source.spm")
#: Files that hold a SentencePiece model; tiktoken's have the first of these names, too.
PIECES = ("tokenizer.model", "spiece.model", *_SHIFTED)
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


@dataclass(frozen=True, slots=True)
class _Tokenizer:
    model: Model
    #: the file that numbers most tokens
    name: str
    added: Tokens

    def equals(self, other: _Tokenizer) -> bool:
        """Tell whether two are the same, without parsing them."""
        return self.added == other.added and is_same_content(self._main, other._main)

    @property
    def is_opaque(self) -> bool:
        """Whether it is a SentencePiece model, which is not parsed."""
        return self.name in PIECES and not _TIKTOKEN.match(content_of(self._main, hint=IGNORE))

    def tokens(self) -> Tokens:
        """Return the tokens by their numbers."""
        main = self._main
        path = str(main) if isinstance(main, Path) else f"{self.name} of {self.model.name}"
        tokens = _READERS[Path(self.name).suffix](content_of(main, hint=IGNORE), path)
        return {**tokens, **self.added}

    @property
    def _main(self) -> bytes | Path:
        return self.model.files[self.name]


def conflicts(models: Models) -> Iterator[Doubt]:
    """Compare every model's tokenizer with those before it, one `Doubt` per model."""
    named = models.by_name.values()
    main = [model for model in named if not model.files.keys().isdisjoint(_MAIN)]
    shifted = [model for model in named if not model.files.keys().isdisjoint(_SHIFTED)]
    yield from _conflicts(_tokenizers(main, _MAIN))
    if {model.name for model in shifted} - {model.name for model in main}:
        yield from _conflicts(_tokenizers(shifted, _SHIFTED))


def _conflicts(tokenizers: Iterable[_Tokenizer]) -> Iterator[Doubt]:
    distinct: list[_Tokenizer] = []
    for tokenizer in tokenizers:
        if not any(map(tokenizer.equals, distinct)):
            distinct.append(tokenizer)
    known: Tokens = {}
    owners: dict[int, Model] = {}
    for tokenizer in distinct if len(distinct) > 1 else []:
        if tokenizer.is_opaque or distinct[0].is_opaque:
            if tokenizer is not distinct[0]:
                yield _incomparable(tokenizer, distinct[0])
            continue
        found = tokenizer.tokens()
        other = [number for number in found if known.get(number, found[number]) != found[number]]
        if other:
            yield _conflict(tokenizer, other, found, known, owners)
        owners |= dict.fromkeys(found.keys() - known.keys(), tokenizer.model)
        known = {**found, **known}


def _conflict(
    tokenizer: _Tokenizer,
    numbers: list[int],
    found: Tokens,
    known: Tokens,
    owners: Mapping[int, Model],
) -> Doubt:
    one = len(numbers) == 1
    head = "1 number means another token" if one else f"{len(numbers)} numbers mean other tokens"
    rows = [
        f"    {number}: {shown(found[number])}, {first}'s is {shown(known[number])}"
        for number in heapq.nsmallest(_SHOWN, numbers)
        for first in [measure(owners[number])]
    ]
    rest = [f"    ... and {len(numbers) - _SHOWN} more"] if len(numbers) > _SHOWN else []
    return Doubt("tokenizer", tokenizer.model.name, "\n".join([head, *rows, *rest]))


def _incomparable(tokenizer: _Tokenizer, first: _Tokenizer) -> Doubt:
    """Return the doubt about a SentencePiece model beside another tokenizer."""
    problem = (
        f"{tokenizer.name} cannot be compared with {first.name} of {measure(first.model)}: a "
        "SentencePiece model is the same only byte by byte. Save the tokenizers of all models with "
        "transformers, which writes tokenizer.json"
    )
    return Doubt("tokenizer", tokenizer.model.name, problem)


def _tokenizers(models: Sequence[Model], names: Iterable[str]) -> Iterator[_Tokenizer]:
    """Read each tokenizer from a file that all models have or, without one, from its best."""
    common = [name for name in names if all(name in model.files for model in models)]
    for model in models:
        name = next(name for name in common or names if name in model.files)
        yield _Tokenizer(model, name, _added(model))


def _added(model: Model) -> Tokens:
    """Return the tokens that were added to a vocabulary, as far as they are said beside it."""
    found = _inverted(model.config("added_tokens.json"), "added_tokens.json")
    decoder = model.config("tokenizer_config.json").get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        content = token.get("content") if isinstance(token, dict) else token
        if len(number) <= _MOST_DIGITS and number.isdecimal() and isinstance(content, str):
            found[int(number)] = content
    return found


def _from_json(text: bytes, path: str) -> Tokens:
    """Read `tokenizer.json`, or a `vocab.json`, which is the vocabulary alone."""
    rest, _ = split_merges(text, path)
    read = parse_json(
        _vocabulary(rest, path), path=path, constants=True, bytes_a_value=BYTES_PER_VALUE
    )
    if "model" not in read or not isinstance(read["model"], dict):
        return _inverted(read, path)
    vocabulary, added = read["model"].get("vocab"), read.get("added_tokens", [])
    try:
        tokens = (
            {number: str(token) for number, (token, _) in enumerate(vocabulary)}
            if isinstance(vocabulary, list)
            else _inverted(vocabulary, path)
        )
        return {**tokens, **{int(each["id"]): str(each["content"]) for each in added}}
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise _malformed(path, "a vocabulary") from error


def _inverted(vocabulary: Any, path: str) -> Tokens:  # noqa: ANN401 - JSON
    if not isinstance(vocabulary, dict):
        raise _malformed(path, "a vocabulary")
    if all(isinstance(number, dict) for number in vocabulary.values()):
        return {}  # a vocabulary a language: speech models have some
    if not all(type(number) is int for number in vocabulary.values()):
        raise _malformed(path, "a number for every token")
    return {number: token for token, number in vocabulary.items()}


def _from_text(text: bytes, path: str) -> Tokens:
    try:
        return dict(enumerate(line.decode("utf-8") for line in _lines(text, path)))
    except UnicodeDecodeError as error:
        raise _malformed(path, "UTF-8") from error


def _from_tiktoken(data: bytes, path: str) -> Tokens:
    try:
        parts = (line.split() for line in _lines(data, path))
        return {int(number): _letters(base64.b64decode(token)) for token, number in parts}
    except ValueError as error:
        raise _malformed(path, "a token and its number in every line") from error


def _letters(token: bytes) -> str:
    """Spell bytes as byte-level vocabularies do: a printable character for each."""
    return token.decode("latin-1").translate(_LETTERS)


def _byte_alphabet() -> dict[int, int]:
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    return {byte: 256 + n for n, byte in enumerate(sorted({*range(256)} - printable))}


_LETTERS = _byte_alphabet()
_READERS = {
    ".json": _from_json,
    ".txt": _from_text,
    ".model": _from_tiktoken,
    ".spm": _from_tiktoken,
}


def _malformed(path: str, what: str) -> CheckpointError:
    return CheckpointError(f"{path[:500]}: the tokenizer does not hold {what}", hint=IGNORE)


def _vocabulary(text: bytes, path: str) -> bytes:
    if len(text) > _LARGEST_VOCABULARY:
        raise CheckpointError(f"{path}: a vocabulary of {len(text)} bytes is refused", hint=IGNORE)
    return text


def _lines(text: bytes, path: str) -> list[bytes]:
    if text.count(b"\n") > _MOST_TOKENS:
        raise CheckpointError(f"{path}: more than {_MOST_TOKENS} tokens are refused", hint=IGNORE)
    return [line.removesuffix(b"\r") for line in text.removesuffix(b"\n").split(b"\n")]
