"""The output's tokenizer as transformers loads it, compared with its `tokenizer.json`.

`AutoTokenizer` chooses a class by the type of the model. For some types, such as qwen2, it ignores
the class that the tokenizer's files name, and builds one with other splits and tokens. The rows of
the embeddings follow `tokenizer.json`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from fusion_tokenizer.models import CONFIG
from fusion_tokenizer.perplexity import read_text
from fusion_tokenizer.vocabulary import CHILD, LIMITS, TOKENIZER
from pools_checkpoints import LimitExceeded, WorkFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fusion_tokenizer.models import Pair
    from fusion_tokenizer.vocabulary import Vocabulary

#: The most tokens whose texts are compared, and the most that a warning names.
_SAMPLE, _NAMED = 1000, 3
_AUTOMATIC, _PLAIN = "AutoTokenizer", "PreTrainedTokenizerFast"


class _Loaded(BaseModel):
    """A tokenizer that transformers loaded: its class, its tokens, and the ids of some texts."""

    kind: str
    tokens: dict[str, int]
    ids: list[list[int]]


def compare_loaded(directory: Path, pair: Pair, rows: int) -> list[str]:
    """Return a warning if `AutoTokenizer` gives other ids than `tokenizer.json` in a directory.

    `rows` is the number of rows of the embeddings. Without transformers, nothing is compared.
    """
    if find_spec("transformers") is None:
        return []
    donor = pair.donor.vocabulary
    texts = [read_text(None), *_sample(donor)]
    expected = donor.encode(texts)
    try:
        loaded = _load(directory, _AUTOMATIC, texts)
        problems = list(_find_differences(loaded, donor, expected, rows))
        if not problems:
            return []
        plain = _load(directory, _PLAIN, texts)
    except (WorkFailed, LimitExceeded, ValidationError) as error:
        problem = "transformers cannot load the output's tokenizer, so its ids are not checked"
        return [f"{problem}: {str(error)[:300]}"]
    advice = (
        "Save the donor's tokenizer again with transformers, and transplant that one."
        if any(_find_differences(plain, donor, expected, rows))
        else f"Load it with {_PLAIN}.from_pretrained, which gives the ids of {TOKENIZER}."
    )
    warning = (
        f"{_AUTOMATIC} loads the output's tokenizer as {loaded.kind} for the model type "
        f"{pair.model.json(CONFIG).get('model_type')}, which differs from {TOKENIZER}: "
        f"{'; '.join(problems)}. The embeddings and any measurement follow {TOKENIZER}. {advice}"
    )
    return [warning]


def _load(directory: Path, loader: str, texts: list[str]) -> _Loaded:
    request = {"do": "load", "directory": str(directory), "loader": loader, "texts": texts}
    return _Loaded.model_validate_json(CHILD.ask(request, LIMITS))


def _sample(donor: Vocabulary) -> list[str]:
    """Return the texts of some tokens, spread over the vocabulary."""
    contents = [
        donor.texts[token].content for token in sorted(donor.ids) if token not in donor.special
    ]
    sample = contents[:: len(contents) // _SAMPLE + 1]
    return [text for text in (content.decode(errors="ignore") for content in sample) if text]


def _find_differences(
    loaded: _Loaded, donor: Vocabulary, expected: list[list[int]], rows: int
) -> Iterator[str]:
    count = sum(ids != other for ids, other in zip(loaded.ids, expected, strict=True))
    if count:
        yield f"{count:,} of {len(expected):,} texts get other ids"
    strange = {
        token: number for token, number in loaded.tokens.items() if donor.ids.get(token) != number
    }
    beyond = {token: number for token, number in strange.items() if number >= rows}
    if strange.keys() - beyond.keys():
        yield f"tokens with other ids: {_list({t: strange[t] for t in strange if t not in beyond})}"
    if beyond:
        yield f"tokens beyond the {rows:,} rows, which the model cannot read: {_list(beyond)}"


def _list(tokens: dict[str, int]) -> str:
    names = [f"{token} ({number})" for token, number in sorted(tokens.items())]
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
