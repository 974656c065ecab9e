"""A model's tokenizer: its tokens by id, their texts and roles, and its splits of texts.

The tokenizer runs in a child process under limits of time and memory, because it comes with a model
and may be hostile. Only `tokenizer.json` is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from fusion_core.errors import CheckpointError
from fusion_core.weights import parse_json
from fusion_tokenizer.spelling import Spelling, Text, text_of
from pools_checkpoints import LimitExceeded, Limits, SandboxedWorker, WorkFailed, read_side_file

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from fusion_core.weights import Files

T = TypeVar("T")

TOKENIZER, SETTINGS, SPECIAL_TOKENS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
#: Roles of tokens. A token with several roles has the first one's row.
ROLES = ("eos", "bos", "unk", "pad", "sep", "cls", "mask")
#: Limits of one request to the child.
LIMITS = Limits(seconds=120, memory=2_000_000_000, answer=256_000_000)
#: Texts in one request to the child.
_BATCH = 2000
#: The most tokens that a vocabulary may have; the largest known ones have 262,144.
MOST_TOKENS = 10_000_000
_OTHER_FILES = ("tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt")
_SUPPORTED = (
    "Choose a model whose tokenizer is BPE, Unigram or WordLevel, without a mark for parts of "
    "words, such as that of Llama, Mistral, Qwen, Gemma or GPT-2."
)
_INSPECT = (
    "The file came with the model, and may be damaged or hostile. Look at it, or save the "
    "tokenizer again with transformers."
)

#: The child process that reads tokenizers.
CHILD = SandboxedWorker("fusion_tokenizer.worker:serve")


class _Description(BaseModel):
    ids: dict[str, Annotated[int, Field(ge=0, lt=MOST_TOKENS)]]
    unknown: int | None
    added: frozenset[str]
    special: frozenset[str]
    spelling: Spelling
    has_byte_tokens: bool
    digest: str


_DESCRIPTION = TypeAdapter(_Description)
_ROWS = TypeAdapter[list[list[int]]](list[list[int]])


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model. Raises `CheckpointError` where the tokenizer exceeds a limit."""

    #: the model's name in errors
    model: str
    path: Path
    description: _Description
    #: the token of each role, where the files name one that the tokenizer has
    roles: Mapping[str, str]

    @property
    def ids(self) -> Mapping[str, int]:
        """The id of each token."""
        return self.description.ids

    @property
    def unknown(self) -> int | None:
        """The id that stands for text which the tokenizer does not know, as its model states it."""
        return self.description.unknown

    @property
    def special(self) -> frozenset[str]:
        """The control tokens, which are not part of a text."""
        return self.description.special

    @property
    def size(self) -> int:
        """The number of rows that the ids need."""
        return max(self.ids.values(), default=-1) + 1

    @cached_property
    def texts(self) -> Mapping[str, Text]:
        """The text of each token."""
        known = self.description
        return {
            token: Text(token.encode(errors="replace"))
            if token in known.added
            else text_of(token, known.spelling, has_byte_tokens=known.has_byte_tokens)
            for token in self.ids
        }

    def equals(self, other: Vocabulary) -> bool:
        """Tell whether two tokenizers split every text into the same ids."""
        return self.description.digest == other.description.digest

    def encode(self, texts: Sequence[str], *, as_piece: bool = False) -> list[list[int]]:
        """Return the token ids of texts, without special tokens around them.

        With `as_piece`, no space is put in front of a text.
        """
        rows: list[list[int]] = []
        for start in range(0, len(texts), _BATCH):
            batch = list(texts[start : start + _BATCH])
            request = {"do": "encode", "file": str(self.path), "texts": batch, "as_piece": as_piece}
            encoded: list[list[int]] = _ask(request, _ROWS, self.model, "splitting texts with")
            rows += encoded
        return rows


def read_vocabulary(files: Files, model: str) -> Vocabulary:
    """Read a model's tokenizer from its side files.

    Raises `CheckpointError` for a model without `tokenizer.json` and for an unreadable one.
    """
    path = files.get(TOKENIZER)
    if not isinstance(path, Path):
        raise missing_tokenizer(files, model)
    read_side_file(path)  # refuses a huge file
    request = {"do": "describe", "file": str(path)}
    description = _ask(request, _DESCRIPTION, model, "reading")
    if not description.ids:
        raise CheckpointError(f"{model}: {TOKENIZER} has no tokens", hint=_INSPECT)
    return Vocabulary(model, path, description, dict(_find_roles(files, description, model)))


def missing_tokenizer(names: Container[str], model: str) -> CheckpointError:
    """Return the error for a model with files of these names, but without `tokenizer.json`."""
    other = next((name for name in _OTHER_FILES if name in names), None)
    return CheckpointError(
        f"{model}: missing {TOKENIZER}" + (f"; it has {other}" if other else ""),
        hint="Convert the tokenizer with transformers: AutoTokenizer.from_pretrained, then "
        f"save_pretrained, which writes {TOKENIZER}.",
    )


def _find_roles(files: Files, known: _Description, model: str) -> Iterator[tuple[str, str]]:
    """Yield the token of each role, from the tokenizer's files or else from `config.json`."""
    settings = {**read_json(files, SPECIAL_TOKENS, model), **read_json(files, SETTINGS, model)}
    config = read_json(files, "config.json", model)
    tokens = {number: token for token, number in known.ids.items()}
    for role in ROLES:
        value = settings.get(f"{role}_token")
        token = value.get("content") if isinstance(value, dict) else value
        if token is None:
            number = config.get(f"{role}_token_id")
            number = number[0] if isinstance(number, list) and number else number
            token = tokens.get(number) if isinstance(number, int) else None
        if isinstance(token, str) and token in known.ids:
            yield role, token


def read_json(files: Files, name: str, model: str) -> dict[str, Any]:
    """Parse a side file; return an empty mapping if it is missing."""
    if name not in files:
        return {}
    return parse_json(read_side_file(files[name]), path=f"{name} of {model}", constants=True)


def _ask(request: Mapping[str, Any], answer: TypeAdapter[T], model: str, action: str) -> T:
    """Let the child answer; raise `CheckpointError` for a failure, or an invalid answer."""
    try:
        return answer.validate_json(CHILD.ask(request, LIMITS))
    except WorkFailed as error:
        if str(error).startswith("unsupported"):
            raise CheckpointError(f"{model}: {TOKENIZER}: {error}", hint=_SUPPORTED) from error
        problem = f"invalid {TOKENIZER}: {error}"
    except LimitExceeded as error:
        problem = f"{action} its {TOKENIZER} {error}"
    except ValidationError as error:
        problem = f"invalid {TOKENIZER}: {error.errors()[0]['msg']}"
    raise CheckpointError(f"{model}: {problem}", hint=_INSPECT)
