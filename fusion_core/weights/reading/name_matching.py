"""Matching of tensor names between models of one kind that differ by a prefix.

transformers 5 writes a CLIPVisionModel as `embeddings...`, and the hub's files say
`vision_model.embeddings...`. GPT-2 from the hub says `h.0...`, and saved with its head
`transformer.h.0...`. One rule covers them all: the one prefix under which most names match.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING

from fusion_core.errors import AlignmentError

if TYPE_CHECKING:
    from collections.abc import Collection

#: The number of names from which prefixes are guessed. Every guess is tried on all names.
_SAMPLE = 64
_MOST_GUESSES = 16


def match_names(ours: Collection[str], theirs: Collection[str]) -> dict[str, str]:
    """Return our name -> their name for every tensor that both models have.

    Names match as they are, unless one prefix before ours or before theirs matches more of them.
    Raises `AlignmentError` if most names match under either of two prefixes: trainers store
    averages of the weights next to them.
    """
    our_names, their_names = set(ours), set(theirs)
    plain = {name: name for name in ours if name in their_names}
    if len(plain) == len(our_names):
        return plain
    by_prefix = chain(
        (
            {name: prefix + name for name in ours if prefix + name in their_names}
            for prefix in _guess_prefixes(ours, theirs)
        ),
        (
            {prefix + name: name for name in theirs if prefix + name in our_names}
            for prefix in _guess_prefixes(theirs, ours)
        ),
    )
    best, rival = plain, None
    for matches in by_prefix:
        if len(matches) > len(best):
            best, rival = matches, None
        elif len(matches) == len(best) > len(plain):
            rival = matches
    if rival is not None and 2 * len(best) > min(len(our_names), len(their_names)):
        one, other = next(iter(best.items())), next(iter(rival.items()))
        names = sorted({*one, *other}, key=len)[1:]
        raise AlignmentError(
            f"most tensors match under two prefixes, such as {' and '.join(map(repr, names))}",
            hint="Save the part that is to be merged as a file of its own, and name that.",
        )
    taken = set(best.values())
    rest = {name: same for name, same in plain.items() if name not in best and same not in taken}
    return {**best, **rest}


def _guess_prefixes(short: Collection[str], long: Collection[str]) -> list[str]:
    """Return the most frequent prefixes of `long` names in front of `short` names."""
    sample = set(list(short)[:: max(1, len(short) // _SAMPLE)])
    counts = Counter(
        name[: index + 1]
        for name in long
        for index, character in enumerate(name)
        if character == "." and name[index + 1 :] in sample
    )
    return [prefix for prefix, _ in counts.most_common(_MOST_GUESSES)]
