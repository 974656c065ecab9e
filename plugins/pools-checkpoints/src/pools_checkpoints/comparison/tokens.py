"""Which token each id stands for, read from a tokenizer's files, whatever their format.

Rows of embeddings are merged by token id, so an id that stands for different tokens in two models
makes their merge meaningless. Appended tokens do no harm. Files with the same bytes are not parsed.
SentencePiece models are compared only by their bytes: if two differ, nothing tells how.
"""

from __future__ import annotations

import base64
import heapq
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_core.weights import Difference, parse_json
from pools_checkpoints.comparison.tokenization import BYTES_PER_VALUE, IGNORE, split_merges
from pools_checkpoints.files import is_same_content, read_side_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pools_checkpoints.comparison.models import Model, Models

    Tokens = dict[int, str]

#: In bytes, without merges: Gemma's has 8 million.
_LARGEST_VOCABULARY = 20_000_000
_MOST_TOKENS = 1_000_000
_MOST_ROWS, _MOST_DIGITS = 10, 18
#: Files that give every token's id, best first.
_MAIN = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
#: Tokenizers shift the ids in these files, so they are comparable only with each other.
_SHIFTED = ("sentencepiece.bpe.model", "spm.model", "source.spm")
#: Files that hold a SentencePiece model; the first name is also used by tiktoken.
SENTENCEPIECE = ("tokenizer.model", "spiece.model", *_SHIFTED)
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


@dataclass(frozen=True, slots=True)
class _Tokenizer:
    model: Model
    #: the file that gives most ids
    name: str
    added: Tokens

    @property
    def file(self) -> bytes | Path:
        return self.model.files[self.name]

    def equals(self, other: _Tokenizer) -> bool:
        """Tell whether two tokenizers are the same, without parsing them."""
        return self.added == other.added and is_same_content(self.file, other.file)

    @property
    def is_opaque(self) -> bool:
        """Whether it is a SentencePiece model, which is not parsed."""
        if self.name not in SENTENCEPIECE:
            return False
        return not _TIKTOKEN.match(read_side_file(self.file, hint=IGNORE))

    def tokens(self) -> Tokens:
        """Return the tokens by their ids."""
        file = self.file
        path = str(file) if isinstance(file, Path) else f"{self.name} of {self.model.name}"
        content = read_side_file(file, hint=IGNORE)
        read = {".json": _from_json, ".txt": _from_text}.get(Path(self.name).suffix, _from_tiktoken)
        return {**read(content, path), **self.added}


def conflicts(models: Models) -> Iterator[Difference]:
    """Compare every model's tokenizer with those before it, one difference per model."""
    main, shifted = (
        [model for model in models.by_name.values() if not model.files.keys().isdisjoint(names)]
        for names in (_MAIN, _SHIFTED)
    )
    yield from _conflicts(main, _MAIN)
    if not set(shifted) <= set(main):
        yield from _conflicts(shifted, _SHIFTED)


def _conflicts(models: Sequence[Model], names: Sequence[str]) -> Iterator[Difference]:
    """Compare tokenizers by a file that all models have or, without one, by each model's best."""
    common = [name for name in names if all(name in model.files for model in models)]
    distinct: list[_Tokenizer] = []
    for model in models:
        name = next(name for name in common or names if name in model.files)
        tokenizer = _Tokenizer(model, name, _added_tokens(model))
        if not any(map(tokenizer.equals, distinct)):
            distinct.append(tokenizer)
    if len(distinct) < 2:  # noqa: PLR2004 - nothing to compare
        return
    first = distinct[0]
    known: Tokens = {}
    owners: dict[int, Model] = {}
    for tokenizer in distinct:
        if first.is_opaque or tokenizer.is_opaque:
            if tokenizer is not first:
                problem = (
                    f"{tokenizer.name} cannot be compared with {first.name} of "
                    f"{first.model.label}: a SentencePiece model can only be compared byte by "
                    "byte. Save the tokenizers of all models with transformers, which writes "
                    "tokenizer.json"
                )
                yield Difference("tokenizer", tokenizer.model.name, problem)
            continue
        tokens = tokenizer.tokens()
        ids = [number for number in tokens if known.get(number, tokens[number]) != tokens[number]]
        if ids:
            stand = "1 token id stands" if len(ids) == 1 else f"{len(ids)} token ids stand"
            lines = [f"{stand} for other tokens"]
            for number in heapq.nsmallest(_MOST_ROWS, ids):
                token, other = reprlib.repr(tokens[number]), reprlib.repr(known[number])
                lines.append(f"    {number}: {token}, {owners[number].label}'s is {other}")
            if len(ids) > _MOST_ROWS:
                lines.append(f"    ... and {len(ids) - _MOST_ROWS} more")
            yield Difference("tokenizer", tokenizer.model.name, "\n".join(lines))
        owners |= dict.fromkeys(tokens.keys() - known.keys(), tokenizer.model)
        known = {**tokens, **known}


def _added_tokens(model: Model) -> Tokens:
    """Return the tokens that files next to a vocabulary add to it."""
    added = _invert(model.config("added_tokens.json"), "added_tokens.json")
    decoder = model.config("tokenizer_config.json").get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        content = token.get("content") if isinstance(token, dict) else token
        if len(number) <= _MOST_DIGITS and number.isdecimal() and isinstance(content, str):
            added[int(number)] = content
    return added


def _from_json(text: bytes, path: str) -> Tokens:
    """Read `tokenizer.json`, or a `vocab.json`, which is only the vocabulary."""
    rest, _ = split_merges(text, path)
    if len(rest) > _LARGEST_VOCABULARY:
        expected = f"a vocabulary of at most {_LARGEST_VOCABULARY:,} bytes, got {len(rest):,}"
        raise _invalid(path, expected)
    parsed = parse_json(rest, path=path, constants=True, bytes_per_value=BYTES_PER_VALUE)
    model = parsed.get("model")
    if not isinstance(model, dict):
        return _invert(parsed, path)
    vocabulary, added = model.get("vocab"), parsed.get("added_tokens", [])
    try:
        tokens = (
            {number: str(token) for number, (token, _) in enumerate(vocabulary)}
            if isinstance(vocabulary, list)
            else _invert(vocabulary, path)
        )
        return {**tokens, **{int(entry["id"]): str(entry["content"]) for entry in added}}
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise _invalid(path, "a vocabulary") from error


def _invert(vocabulary: Any, path: str) -> Tokens:  # noqa: ANN401 - JSON
    if not isinstance(vocabulary, dict):
        raise _invalid(path, "a vocabulary")
    if all(isinstance(number, dict) for number in vocabulary.values()):
        return {}  # one vocabulary per language, in some speech models
    if not all(type(number) is int for number in vocabulary.values()):
        raise _invalid(path, "an id for every token")
    return {number: token for token, number in vocabulary.items()}


def _from_text(text: bytes, path: str) -> Tokens:
    try:
        return dict(enumerate(line.decode("utf-8") for line in _lines(text, path)))
    except UnicodeDecodeError as error:
        raise _invalid(path, "UTF-8") from error


def _from_tiktoken(data: bytes, path: str) -> Tokens:
    """Read tokens, and spell their bytes like byte-level vocabularies: one letter per byte."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters = {byte: 256 + n for n, byte in enumerate(sorted({*range(256)} - printable))}
    try:
        return {
            int(number): base64.b64decode(token).decode("latin-1").translate(letters)
            for token, number in (line.split() for line in _lines(data, path))
        }
    except ValueError as error:
        raise _invalid(path, "a token and its id in every line") from error


def _lines(text: bytes, path: str) -> list[bytes]:
    if (count := text.count(b"\n")) > _MOST_TOKENS:
        raise _invalid(path, f"at most {_MOST_TOKENS:,} tokens, got {count:,}")
    return [line.removesuffix(b"\r") for line in text.removesuffix(b"\n").split(b"\n")]


def _invalid(path: str, expected: str) -> CheckpointError:
    return CheckpointError(f"{path[:500]}: invalid tokenizer: expected {expected}", hint=IGNORE)
