"""The rows of new tokens, as combinations of the model's rows of other tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from fusion_core.errors import AlignmentError
from fusion_core.weights import run_all
from fusion_tokenizer.neighbours import Neighbours
from fusion_tokenizer.plan import Combinations, mean_of
from fusion_tokenizer.pursuit import Pursuit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor

    from torch import Tensor

    from fusion_core import Progress
    from fusion_tokenizer.matching import Matches
    from fusion_tokenizer.options import TransplantOptions
    from fusion_tokenizer.vocabulary import Vocabulary

#: The pieces of a token that its row is made of.
Which = Literal["all", "first", "last"]
#: Reasons for which a method leaves a row to the mean.
NO_ROW, ZERO_ROW, NO_PIECES, NOT_SPELLED = (
    "the donor has no row for it",
    "the donor's row is zero",
    "the model's tokenizer has no pieces for it",
    "the model's pieces do not spell its text",
)


@dataclass(frozen=True)
class Approximation:
    """Combinations for some of the new tokens, and why others have none."""

    #: the number of the combination per row of the output; -1 for other rows
    slots: Tensor
    combinations: Combinations
    #: how many tokens are left to the mean, by reason
    left: Mapping[str, int]


def combine_shared(
    donor_matrix: Tensor,
    matches: Matches,
    options: TransplantOptions,
    executor: Executor,
    progress: Progress,
) -> Approximation:
    """Represent the donor's rows of new tokens by its rows of shared tokens.

    The coefficients apply to the model's rows of the same shared tokens, which may have another
    width. Raises `AlignmentError` if the models share fewer than `k` usable tokens.
    """
    work_dtype = torch.promote_types(donor_matrix.dtype, torch.float32)
    shared = _with_rows(matches.shared, donor_matrix)
    if len(shared) < options.k:
        raise AlignmentError(
            f"--method {options.method} with -k {options.k} needs as many tokens that both "
            f"vocabularies have, and there are {len(shared)}",
            hint="Use a smaller -k, or --method subword, which needs no shared tokens.",
        )
    points = donor_matrix[shared].to(work_dtype)
    origin, model_rows = torch.zeros(1, dtype=work_dtype), matches.rows[shared]
    center = model_rows if options.method == "omp" and options.center else None
    if center is not None:
        origin = mean_of(donor_matrix, shared).to(work_dtype)
    represent = (Pursuit if options.method == "omp" else Neighbours)(points - origin, options.k)
    has_row = matches.new[matches.new < len(donor_matrix)]
    targets = _with_rows(has_row, donor_matrix)
    parts: list[tuple[Tensor, Tensor]] = []
    with progress.track("approximate", total=len(targets), unit="tokens") as advance:
        size = represent.batch_size
        units = (
            donor_matrix[targets[start : start + size]].to(work_dtype) - origin
            for start in range(0, len(targets), size)
        )
        for chosen, coefficients in run_all(executor, represent, units):
            parts += zip(model_rows[chosen], coefficients, strict=True)
            advance(len(chosen))
    left = {NO_ROW: len(matches.new) - len(has_row), ZERO_ROW: len(has_row) - len(targets)}
    return Approximation(_slots(targets, matches), Combinations.of(parts, center), left)


def combine_pieces(
    model: Vocabulary,
    donor: Vocabulary,
    matches: Matches,
    model_rows: int,
    which: Which,
) -> Approximation:
    """Represent each new token by the pieces into which the model's tokenizer splits its text.

    A row is the mean of those of `which` pieces. A text that is a part of a character is split into
    the model's tokens for its bytes. A token is left to the mean if its pieces do not spell its
    text, because the model's tokenizer drops or changes characters.
    """
    spelled = {number: model.texts[token].content for token, number in model.ids.items()}
    tokens = {number: token for token, number in donor.ids.items()}
    texts = [donor.texts[tokens[number]].content for number in matches.new.tolist()]
    represented, parts, left = [], [], {NO_PIECES: 0, NOT_SPELLED: 0}
    for number, text, pieces in zip(matches.new.tolist(), texts, _split(model, texts), strict=True):
        rows = torch.tensor([piece for piece in pieces if piece < model_rows], dtype=torch.long)
        if not len(rows) or len(rows) < len(pieces):
            left[NO_PIECES] += 1
            continue
        if b"".join(spelled[piece] for piece in pieces) != text:
            left[NOT_SPELLED] += 1
            continue
        rows = {"all": rows, "first": rows[:1], "last": rows[-1:]}[which]
        represented.append(number)
        parts.append((rows, torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)))
    slots = _slots(torch.tensor(represented, dtype=torch.long), matches)
    return Approximation(slots, Combinations.of(parts), left)


def combine_nothing(matches: Matches, *, zero: bool) -> Approximation:
    """Leave all new tokens to the mean, or give them rows of zeros."""
    represented = matches.new if zero else matches.new[:0]
    empty = (torch.zeros(0, dtype=torch.long), torch.zeros(0))
    combinations = Combinations.of([empty] * len(represented))
    return Approximation(_slots(represented, matches), combinations, {})


def _split(model: Vocabulary, texts: list[bytes]) -> list[list[int]]:
    """Return the model's tokens for each text, without any that stands for unknown text."""
    byte_tokens = {
        text.content[0]: model.ids[token]
        for token, text in model.texts.items()
        if len(text.content) == 1
    }
    decoded = [_decode(text) for text in texts]
    rows = iter(model.encode([text for text in decoded if text], as_piece=True))
    pieces = []
    for text, content in zip(decoded, texts, strict=True):
        if text is not None:
            row = next(rows) if text else []
        else:
            row = [byte_tokens[byte] for byte in content if byte in byte_tokens]
            row = row if len(row) == len(content) else []
        pieces.append([] if model.unknown in row else row)
    return pieces


def _decode(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def _with_rows(numbers: Tensor, matrix: Tensor) -> Tensor:
    """Return the numbers of rows that exist and are not zero."""
    numbers = numbers[numbers < len(matrix)]
    return numbers[(matrix[numbers] != 0).any(1)]


def _slots(represented: Tensor, matches: Matches) -> Tensor:
    slots = torch.full_like(matches.rows, -1)
    slots[represented] = torch.arange(len(represented))
    return slots
