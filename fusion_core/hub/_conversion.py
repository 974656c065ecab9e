"""Safetensors that the hub's own bot made of a repository's pickles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.hub._cache import is_cached, is_offline, remember_commit, remembered_commit
from fusion_core.hub._client import listing, resolve
from fusion_core.hub._requests import ask_commit, ask_conversions, ask_digests

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_core.hub.reference import Reference

_CONVERTED, _PICKLED = ".safetensors", ".bin"


def conversion(reference: Reference) -> Reference | None:
    """Return the commit at which the hub's own bot offers a repository's pickles as safetensors.

    None if it offers none, or only one of other pickles than these, and if the cache has pickles
    of this commit already. What was found is remembered. Raises `HubError` as `resolve` does.
    """
    pinned = resolve(reference)
    place = pinned.at(f"conversion-of-{pinned.revision}")
    if known := remembered_commit(place):
        return pinned.at(known.commit)
    if is_offline() or _has_pickles(pinned):
        return None
    found = next(_conversions(pinned), None)
    if found is None:
        return None
    remember_commit(place, found)
    return pinned.at(found)


def _has_pickles(pinned: Reference) -> bool:
    return any(is_cached(pinned, path) for path in listing(pinned) if path.endswith(_PICKLED))


def _conversions(pinned: Reference) -> Iterator[str]:
    """Find conversions of the very pickles that a commit has."""
    requests = ask_conversions(pinned)
    ours = _pickles(ask_digests(pinned)) if requests else {}
    for request in requests:
        commit = ask_commit(pinned.at(request))
        theirs = ask_digests(pinned.at(commit))
        if _pickles(theirs) == ours and any(path.endswith(_CONVERTED) for path in theirs):
            yield commit


def _pickles(listed: Mapping[str, str]) -> dict[str, str]:
    return {path: digest for path, digest in listed.items() if path.endswith(_PICKLED)}
