"""Safetensors that the hub's own bot made of a repository's pickles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.hub.cache import RemoteFile, is_offline, remember_commit, remembered_commit
from fusion_core.hub.client import resolve
from fusion_core.hub.transfer import ask_commit, ask_conversions, ask_listing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_core.hub.reference import Reference

_CONVERTED = ".safetensors"


def conversion(reference: Reference) -> Reference | None:
    """Return the commit at which the hub's own bot offers a repository's pickles as safetensors.

    None if it offers none, or only one of other pickles than these. What was found is remembered
    for runs without a network. Raises `HubError` as `resolve` does.
    """
    pinned = resolve(reference)
    place = pinned.at(f"conversion-of-{pinned.revision}")
    known = remembered_commit(place)
    if known is None and not is_offline():
        known = next(_conversions(pinned), None)
        if known is not None:
            remember_commit(place, known)
    return None if known is None else pinned.at(known)


def _conversions(pinned: Reference) -> Iterator[str]:
    """Find conversions of the very pickles that a commit has."""
    requests = ask_conversions(pinned)
    ours = _pickles(ask_listing(pinned)) if requests else {}
    for request in requests:
        commit = ask_commit(pinned.at(request))
        theirs = ask_listing(pinned.at(commit))
        if _pickles(theirs) == ours and any(each.path.endswith(_CONVERTED) for each in theirs):
            yield commit


def _pickles(listed: Sequence[RemoteFile]) -> dict[str, str | None]:
    return {each.path: each.digest for each in listed if each.path.endswith(".bin")}
