"""One tensor under two names: models of one kind may be saved with a prefix, or without it.

transformers 5 writes a CLIPVisionModel as `embeddings...`, the hub's files say
`vision_model.embeddings...`; GPT-2 from the hub says `h.0...`, saved with its head
`transformer.h.0...`. One rule covers them all: the one prefix under which most names meet. Works on
names alone.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

#: Names that prefixes are guessed from; every guess is then tried on all names.
_SAMPLE = 64
_MOST_GUESSES = 16


def same_tensors(ours: Collection[str], theirs: Collection[str]) -> dict[str, str]:
    """Return our name -> their name for every tensor that both have.

    Names are taken as they are, unless more of them meet when one prefix is put before ours or
    before theirs.
    """
    here, there = set(ours), set(theirs)
    best = {name: name for name in ours if name in there}
    if len(best) == len(here):
        return best
    plain = best
    for prefix in _prefixes(ours, theirs):
        found = {name: prefix + name for name in ours if prefix + name in there}
        best = max(best, found, key=len)
    for prefix in _prefixes(theirs, ours):
        found = {prefix + name: name for name in theirs if prefix + name in here}
        best = max(best, found, key=len)
    taken = set(best.values())
    rest = {name: same for name, same in plain.items() if name not in best and same not in taken}
    return {**best, **rest}


def _prefixes(short: Collection[str], long: Collection[str]) -> list[str]:
    """Guess what stands before names of the one model in the other: what does most often."""
    sample = set(list(short)[:: max(1, len(short) // _SAMPLE)])
    found = Counter(
        name[: dot + 1]
        for name in long
        for dot, each in enumerate(name)
        if each == "." and name[dot + 1 :] in sample
    )
    return [prefix for prefix, _ in found.most_common(_MOST_GUESSES)]
