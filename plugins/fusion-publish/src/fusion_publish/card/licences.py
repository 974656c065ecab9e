"""The licence of a merge, worked out from the licences of its models.

A merge is a modified version of each of its models, so the terms of all of them apply. The rules
cover the cases that need no lawyer; everything else is a conflict, which the user decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    Cards = Mapping[str, Mapping[str, Any]]

#: Identifiers of the hub that say nothing.
_UNKNOWN = frozenset({"unknown", "other"})
#: Licences that a merge may leave for another one, from the least to the most demanding. The terms
#: of those that are left, such as notices, apply to the merge as well.
_PERMISSIVE = (
    *("cc0-1.0", "pddl", "unlicense", "wtfpl"),
    *("zlib", "isc", "mit", "bsl-1.0", "postgresql", "ncsa"),
    *("bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear"),
    *("cdla-permissive-1.0", "cdla-permissive-2.0", "openmdw-1.0", "openmdw-1.1"),
    *("odc-by", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0"),
    "apache-2.0",
)
#: Licences whose terms no work can meet together, although one of them is permissive.
_INCOMPATIBLE = frozenset({"apache-2.0", "gpl-2.0"})
#: The mark of licences under which no modified version may be shared.
_NO_DERIVATIVES = "-nd-"


def find_licence(cards: Cards, named: str | None = None) -> str | None:
    """Return the licence of a merge in lower case, or None if a model's licence is unknown.

    `cards` are the facts of the models' cards. `named` is the licence that the user names, if any;
    the user then vouches for it. Raises `RecipeError` for licences that conflict.
    """
    if named is not None:
        return named.lower()
    known = _known_licences(cards)
    licence = _combine(known)
    return licence if all(name in known for name in cards) else None


def check_licences(cards: Cards, named: str | None) -> None:
    """Raise `RecipeError` for models whose licences conflict, unless a licence is named."""
    find_licence(cards, named)


def find_link(cards: Cards, licence: str) -> str | None:
    """Return the link to a licence that a model's card gives."""
    links = (card.get("licence_link") for card in cards.values() if _identifier_of(card) == licence)
    return next((link for link in links if isinstance(link, str) and "://" in link), None)


def _identifier_of(card: Mapping[str, Any]) -> str | None:
    licence = str(card.get("licence") or "").lower()
    return licence if licence and licence not in _UNKNOWN else None


def _known_licences(cards: Cards) -> dict[str, str]:
    licences = {name: _identifier_of(card) for name, card in cards.items()}
    return {name: licence for name, licence in licences.items() if licence is not None}


def _combine(licences: Mapping[str, str]) -> str | None:
    """Return the licence that the terms of all models allow; None without models."""
    distinct = set(licences.values())
    demanding = distinct.difference(_PERMISSIVE)
    forbidden = {licence for licence in distinct if _NO_DERIVATIVES in licence}
    if forbidden or len(demanding) > 1 or distinct >= _INCOMPATIBLE:
        raise _conflict(licences, forbidden)
    if demanding:
        return demanding.pop()
    return max(distinct, key=_PERMISSIVE.index, default=None)


def _conflict(licences: Mapping[str, str], forbidden: Collection[str]) -> RecipeError:
    models = ", ".join(f"{name} ({licence})" for name, licence in licences.items())
    problem = "the models' licences conflict"
    if forbidden:
        problem = f"{', '.join(sorted(forbidden))} forbids sharing modified versions"
    return RecipeError(
        f"{problem}: {models}",
        hint="Read the licences' terms. If they allow the merge, name its licence: in a recipe by "
        "--set output.licence=NAME, for a finished merge by fuse card DIR --licence NAME.",
    )
