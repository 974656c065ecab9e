"""How a tokenizer splits texts into tokens: normalizer, pre-tokenizer, merges and settings.

Vocabularies and merges take most of a `tokenizer.json`. Both are removed from its text before it is
parsed, and merges are hashed in one spelling, so that no list of them is ever built.
"""

from __future__ import annotations

import hashlib
import json
import re
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_core.weights import parse_json
from pools_checkpoints.comparison.models import Fact

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pools_checkpoints.comparison.models import Model

#: The hint of errors about tokenizers.
IGNORE = "Set alignment.tokenizer to 'ignore' to merge without comparing tokenizers."
TOKENIZER, MERGES, SETTINGS = "tokenizer.json", "merges.txt", "tokenizer_config.json"
#: Files of unknown formats, compared as a whole.
OPAQUE = ("bpe.codes", "tekken.json", "target.spm")
#: JSON: a string, a list of strings, a list of such lists, and an object of strings and numbers.
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_LIST = rb'\[(?:[^\[\]"]++|' + _STRING + rb")*+\]"
_NESTED = rb'\[(?:[^\[\]"]++|' + _STRING + rb"|" + _LIST + rb")*+\]"
_OBJECT = rb'\{(?:[^{}"]++|' + _STRING + rb")*+\}"
_MERGES = re.compile(rb'"merges"\s*+:\s*+(?P<merges>' + _NESTED + rb")", re.DOTALL)
_VOCABULARY = re.compile(rb'("vocab"\s*+:\s*+)(?:' + _OBJECT + rb"|" + _NESTED + rb")", re.DOTALL)
_STRINGS = re.compile(rb'"((?:[^"\\]++|\\.)*+)"', re.DOTALL)
_MOST_MERGES = 1_000_000
#: A merge in a list of pairs has four quotes, a token two: Gemma has 2.6 million.
_MOST_QUOTES = 6_000_000
#: Limit for `parse_json`: a token takes two values, and tokenizers have more values than headers.
BYTES_PER_VALUE = 16
_HASHED_AT_ONCE = 2**16
#: Options of a model in `tokenizer.json` that change how texts are split.
_MODEL_OPTIONS = (
    *("type", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk"),
    *("byte_fallback", "ignore_merges", "max_input_chars_per_word"),
)
#: Settings in `tokenizer_config.json` that change how texts are split.
_FLAGS = (
    *("do_lower_case", "do_basic_tokenize", "strip_accents", "tokenize_chinese_chars", "legacy"),
    *("add_prefix_space", "add_bos_token", "add_eos_token", "split_special_tokens"),
)


def tokenization(model: Model) -> dict[str, Fact]:
    """Return the facts that decide how a model's tokenizer splits texts."""
    settings = model.config(SETTINGS)
    facts = {key: Fact(settings[key], SETTINGS) for key in _FLAGS if settings.get(key) is not None}
    if TOKENIZER in model.files:
        facts |= _from_json(model)
    elif MERGES in model.files:
        lines = (line.rstrip(b"\r\n") for line in model.content(MERGES).split(b"\n"))
        merges = (line for line in lines if line.strip() and not line.startswith(b"#version"))
        facts["merges"] = Fact(_digest_merges(merges, MERGES), MERGES)
    for file in OPAQUE:
        if file in model.files:
            digest = hashlib.sha256(model.content(file)).hexdigest()
            facts[f"SHA-256 of {file}"] = Fact(digest, file)
    return facts


def split_merges(text: bytes, path: str) -> tuple[bytes, bytes | None]:
    """Return a `tokenizer.json` with an empty list of merges, and the list that it replaces.

    Raises `CheckpointError` if the file has more strings than any tokenizer, before searching it.
    """
    if (quotes := text.count(b'"')) > _MOST_QUOTES:
        raise CheckpointError(
            f"{path}: expected at most {_MOST_QUOTES:,} quotes, got {quotes:,}", hint=IGNORE
        )
    match = _MERGES.search(text)
    if match is None:
        return text, None
    start, stop = match.span("merges")
    return text[:start] + b"[]" + text[stop:], text[start:stop]


def _from_json(model: Model) -> dict[str, Fact]:
    path = f"{TOKENIZER} of {model.name}"
    rest, merges = split_merges(model.content(TOKENIZER), path)
    parsed = parse_json(
        _VOCABULARY.sub(rb"\1[]", rest, count=1),
        path=path,
        constants=True,
        bytes_per_value=BYTES_PER_VALUE,
    )
    facts: dict[str, Any] = {
        "normalizer": _canonical(parsed.get("normalizer")),
        "pre_tokenizer": _canonical(parsed.get("pre_tokenizer")),
        # Byte-level post-processors only count characters.
        "post_processor": _canonical(parsed.get("post_processor"), without="ByteLevel"),
    }
    options = parsed.get("model")
    if isinstance(options, dict):
        facts |= {f"model.{key}": options.get(key) or None for key in _MODEL_OPTIONS}
    if merges is not None:
        facts["merges"] = _digest_merges(_parse_merges(merges), path)
    return {key: Fact(value, TOKENIZER) for key, value in facts.items()}


def _parse_merges(text: bytes) -> Iterator[bytes]:
    """Yield merges as `merges.txt` spells them, from a JSON list of pairs or of texts."""
    strings: Iterator[bytes] = map(itemgetter(1), _STRINGS.finditer(text))
    in_pairs = text[1:].lstrip().startswith(b"[")
    merges = map(b" ".join, zip(strings, strings, strict=False)) if in_pairs else strings
    return (_unescape(merge) if b"\\" in merge else merge for merge in merges)


def _unescape(merge: bytes) -> bytes:
    try:
        text: str = json.loads(b'"' + merge + b'"', strict=False)
        return text.encode()
    except ValueError:  # such as half a surrogate pair: compare the escaped form
        return merge


def _digest_merges(merges: Iterable[bytes], file: str) -> str:
    """Return the number of merges and their digest."""
    digest, count, lines = hashlib.sha256(), 0, iter(merges)
    while chunk := list(islice(lines, _HASHED_AT_ONCE)):
        count += len(chunk)
        if count > _MOST_MERGES:
            raise CheckpointError(
                f"{file}: too many merges: expected at most {_MOST_MERGES:,}", hint=IGNORE
            )
        digest.update(b"\n".join([*chunk, b""]))
    return f"{count} merges, SHA-256 {digest.hexdigest()[:12]}"


def _canonical(stage: Any, without: str = "") -> Any:  # noqa: ANN401 - JSON
    """Bring a stage of a tokenizer to one spelling, without steps of the kind `without`.

    A sequence of one step becomes that step.
    """
    kind = stage.get("type") if isinstance(stage, dict) else without
    if kind == without:
        return None
    if kind == "Sequence":
        inner = next((value for value in stage.values() if isinstance(value, list)), [])
        steps = [step for step in (_canonical(part, without) for part in inner) if step is not None]
        return steps if len(steps) > 1 else next(iter(steps), None)
    if kind == "Metaspace":
        usual = "always" if stage.get("add_prefix_space", True) else "never"
        stage = {"split": True, "prepend_scheme": usual, **stage}
    ignored = ("add_prefix_space", "str_rep") if kind == "Metaspace" else ("trim_offsets",)
    return {key: value for key, value in stage.items() if key not in ignored}
