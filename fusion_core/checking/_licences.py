"""What the licences of parents say about their merge: conflicts and limits, by the hub's names.

A merge is a modified version of every one of its parents. What is said here is what can be told
from a licence's name, to be looked at by a person: it is not legal advice, and silence is not
permission.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Licences that want modified versions under themselves.
_SHARE_ALIKE = ("cc-by-sa-", "cc-by-nc-sa-", "gpl-", "agpl-", "lgpl-", "odbl", "osl-", "eupl-")
#: Licences with terms of their own, which have to be passed on.
_OWN_TERMS = (
    "llama",
    "gemma",
    "openrail",
    "creativeml-openrail",
    "bigscience-",
    "bigcode-openrail",
    "deepfloyd-",
    "apple-",
    "other",
)
#: Pairs of families of which a merge may be under the second, by what their texts say.
_COMPATIBLE = {
    ("lgpl-3.0", "gpl-3.0"),
    ("lgpl-3.0", "agpl-3.0"),
    ("gpl-3.0", "agpl-3.0"),
    ("cc-by-sa-4.0", "gpl-3.0"),
}


def conflicts(licences: Mapping[str, str | None]) -> list[str]:
    """Name models whose licences forbid their merge, one sentence each; empty if none is known."""
    known = {model: each.lower() for model, each in licences.items() if each}
    alone = [
        f"{model} ({licence}) may not be shared in a modified version, which a merge is"
        for model, licence in known.items()
        if "-nd" in licence
    ]
    return [*alone, *_between(known)]


def limits(licences: Mapping[str, str | None]) -> list[str]:
    """Say what holds for the merge because it holds for a parent, one sentence each."""
    known = {model: each.lower() for model, each in licences.items() if each}
    return [*_limits(known)]


def _limits(known: Mapping[str, str]) -> Iterator[str]:
    for model, licence in known.items():
        if _is_non_commercial(licence):
            yield f"{model} ({licence}) is not for commercial use, nor is the merge then"
        if licence.startswith(_OWN_TERMS):
            yield f"{model} ({licence}) has terms of its own, which the merge has to pass on"
        if licence.startswith(_SHARE_ALIKE):
            yield f"{model} ({licence}) wants the merge under the same licence"


def _between(known: Mapping[str, str]) -> Iterator[str]:
    """Name pairs of licences once, however many models have them."""
    first: dict[str, str] = {}
    for model, licence in known.items():
        first.setdefault(licence, model)
    for one, other in combinations(first, 2):
        if _clash(one, other) or _clash(other, one):
            yield (
                f"{first[one]} ({one}) and {first[other]} ({other}) want their modified versions "
                "under terms that exclude each other"
            )


def _clash(one: str, other: str) -> bool:
    """Tell whether the first wants the merge for itself and the second cannot agree."""
    if (
        not one.startswith(_SHARE_ALIKE)
        or (other, one) in _COMPATIBLE
        or (one, other) in _COMPATIBLE
    ):
        return False
    bound = other.startswith((*_SHARE_ALIKE, *_OWN_TERMS)) or _is_non_commercial(other)
    return bound or (one.startswith("gpl-2.0") and other == "apache-2.0")


def _is_non_commercial(licence: str) -> bool:
    return "-nc" in licence or "noncommercial" in licence
