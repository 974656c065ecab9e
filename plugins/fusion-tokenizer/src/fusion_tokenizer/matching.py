"""Match the tokens of a donor with the rows of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_tokenizer.spelling import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from fusion_tokenizer.vocabulary import Vocabulary

#: Ways in which a donor's token is one of the model's.
SAME_TEXT, SAME_BYTE, SAME_ROLE = "same text", "same byte, other spelling", "same role"


@dataclass(frozen=True)
class Matches:
    """The model's row of each donor token that the model has."""

    #: the model's row for each row of the output; -1 for a new token, and for padding
    rows: Tensor
    #: how many tokens matched in which way
    counts: Mapping[str, int]
    #: the model's token for each donor token that matched by its role
    by_role: Mapping[str, str]
    #: donor ids of tokens with the same text that are no control tokens, each with a row of its own
    shared: Tensor
    #: donor ids of tokens that the model lacks
    new: Tensor


def match_tokens(
    model: Vocabulary, donor: Vocabulary, *, model_rows: int, count: int, roles: bool
) -> Matches:
    """Return the model's row for each of the donor's tokens, in an output of `count` rows.

    Tokens match if they stand for the same text, whatever their spelling. A control token that the
    model lacks matches the one with the same role, if `roles`. A token of the model without a row,
    because its id is not below `model_rows`, matches nothing.
    """
    known = _rows_by_text(model, model_rows)
    rows = torch.full((count,), -1)
    counts = {SAME_TEXT: 0, SAME_BYTE: 0, SAME_ROLE: 0}
    by_role: dict[str, str] = {}
    shared: dict[int, int] = {}
    new: list[int] = []
    twins = _twins_by_role(model, donor, model_rows) if roles else {}
    for token, number in sorted(donor.ids.items(), key=lambda item: item[1]):
        text = donor.texts[token]
        same, other = known.get(text), known.get(Text(text.content, not text.is_byte))
        if same is not None:
            rows[number] = same
            counts[SAME_TEXT] += 1
            if token not in donor.special:
                shared.setdefault(same, number)
        elif other is not None and len(text.content) == 1:
            rows[number] = other
            counts[SAME_BYTE] += 1
        elif token in twins:
            by_role[token] = twins[token]
            rows[number] = model.ids[twins[token]]
            counts[SAME_ROLE] += 1
        else:
            new.append(number)
    return Matches(
        rows,
        counts,
        by_role,
        shared=torch.tensor(sorted(shared.values()), dtype=torch.long),
        new=torch.tensor(new, dtype=torch.long),
    )


def _rows_by_text(model: Vocabulary, model_rows: int) -> dict[Text, int]:
    """Return the model's row of each text. Of two tokens with one text, the lower id counts."""

    def pairs() -> Iterator[tuple[Text, int]]:
        for token, number in sorted(model.ids.items(), key=lambda item: -item[1]):
            if number < model_rows:
                yield model.texts[token], number

    return dict(pairs())


def _twins_by_role(model: Vocabulary, donor: Vocabulary, model_rows: int) -> dict[str, str]:
    """Return the model's token with the same role for each donor token that has one.

    Of several roles, the first one counts that the model has a token for. A token of the model
    serves one token of the donor: a pad token with the row of the end token would be as likely.
    """
    twins: dict[str, str] = {}
    for role, token in donor.roles.items():
        twin = model.roles.get(role)
        if twin is not None and model.ids[twin] < model_rows and twin not in twins.values():
            twins.setdefault(token, twin)
    return twins
