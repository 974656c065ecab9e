"""Pickles that the hub's own bot has converted to safetensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.hub._cache import cache_commit, cached_commit, is_cached, is_offline
from fusion_core.hub._client import list_files, resolve
from fusion_core.hub._requests import request_commit, request_conversions, request_digests

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.hub.reference import Reference

_PICKLE = ".bin"


def find_conversion(reference: Reference) -> Reference | None:
    """Return the commit at which the hub's own bot offers a repository's pickles as safetensors.

    None if there is no conversion of exactly these pickles, or if the cache has pickles of this
    commit already. The cache records the result. Raises `HubError` as `resolve` does.
    """
    pinned = resolve(reference)
    record = pinned.at(f"conversion-of-{pinned.revision}")
    if cached := cached_commit(record):
        return pinned.at(cached[0])
    pickles = [path for path in list_files(pinned) if path.endswith(_PICKLE)]
    if is_offline() or any(is_cached(pinned, path) for path in pickles):
        return None
    revisions = request_conversions(pinned)
    expected = _pickle_digests(request_digests(pinned)) if revisions else {}
    for revision in revisions:
        commit = request_commit(pinned.at(revision))
        digests = request_digests(pinned.at(commit))
        has_safetensors = any(path.endswith(".safetensors") for path in digests)
        if has_safetensors and _pickle_digests(digests) == expected:
            cache_commit(record, commit)
            return pinned.at(commit)
    return None


def _pickle_digests(digests: Mapping[str, str]) -> dict[str, str]:
    return {path: digest for path, digest in digests.items() if path.endswith(_PICKLE)}
