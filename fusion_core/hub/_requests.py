"""Requests to the hub: commits, listings, pull requests, the first bytes of a file.

Only what huggingface_hub raises under `asking` becomes an error of ours.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fusion_core.hub._cache import cache_directory, endpoint
from fusion_core.hub._failures import explained, hide_secrets, http

if TYPE_CHECKING:
    from collections.abc import Iterator

    from huggingface_hub import RepoFile

    from fusion_core.hub.reference import Reference
    from fusion_core.progress import Advance

_BOT = "SFconvertbot"
#: Repositories may have their discussions turned off.
_NO_DISCUSSIONS = {403, 404}


def ask_commit(reference: Reference) -> str:
    """Return the commit that a revision is."""
    with asking(reference):
        from huggingface_hub import HfApi

        info = HfApi(endpoint=endpoint()).repo_info(
            reference.repo, revision=reference.revision, repo_type=reference.kind
        )
    return str(info.sha)


def ask_listing(pinned: Reference) -> dict[str, int]:
    """Return the sizes of a commit's files by path, and have the cache keep the listing.

    From the listing in the cache, a run without a network knows which files are missing.
    huggingface_hub writes the listing with a snapshot, here one of no files.
    """
    from huggingface_hub import snapshot_download

    sizes = {file.path: file.size for file in _tree(pinned)}
    with asking(pinned):
        bar = progress_bar(lambda *_, **__: None)
        snapshot_download(pinned.repo, allow_patterns=[], tqdm_class=bar, **location_of(pinned))
    return sizes


def ask_digests(pinned: Reference) -> dict[str, str]:
    """Return the hashes of a commit's files by path: a SHA-256, or the git object id.

    The listing that the cache keeps has no SHA-256.
    """
    return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in _tree(pinned)}


def ask_conversions(pinned: Reference) -> list[str]:
    """Return the pull requests in which the hub's own bot offers safetensors, oldest first.

    Anybody may open a pull request; only those of the bot count.
    """
    with asking(pinned):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            requests = list(
                HfApi(endpoint=endpoint()).get_repo_discussions(
                    pinned.repo, author=_BOT, discussion_type="pull_request", repo_type=pinned.kind
                )
            )
        except HfHubHTTPError as error:
            if error.response.status_code in _NO_DISCUSSIONS:
                return []
            raise
        numbers = [
            request.num
            for request in requests
            if request.author == _BOT and request.is_pull_request
        ]
        return [f"refs/pr/{number}" for number in sorted(numbers)]


def ask_beginning(pinned: Reference, path: str, count: int) -> bytes:
    """Return the first bytes of a file, without downloading the rest."""
    from huggingface_hub import hf_hub_url, utils

    client: Any = utils
    url = hf_hub_url(
        pinned.repo,
        path,
        repo_type=pinned.kind,
        revision=pinned.revision,
        endpoint=endpoint(),
    )
    headers = {
        **client.build_hf_headers(),
        "Range": f"bytes=0-{count - 1}",
        "Accept-Encoding": "identity",
    }
    content = bytearray()
    with asking(pinned), client.http_stream_backoff("GET", url, headers=headers) as answer:
        client.hf_raise_for_status(answer)
        for chunk in answer.iter_bytes():
            content += chunk
            if len(content) >= count:  # a server that does not know ranges sends everything
                break
    return bytes(content[:count])


def location_of(pinned: Reference) -> dict[str, Any]:
    """Return the arguments by which huggingface_hub's functions know a commit and the cache."""
    return {
        "repo_type": pinned.kind,
        "revision": pinned.revision,
        "cache_dir": cache_directory(),
        "endpoint": endpoint(),
    }


@contextmanager
def asking(reference: Reference) -> Iterator[None]:
    """Turn what huggingface_hub raises into our errors, and keep its log silent meanwhile.

    Its warnings show whole URLs, which may be signed.
    """
    where = endpoint() or "huggingface.co"
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    theirs = (http().HTTPError, http().InvalidURL)
    try:
        yield
    except (OSError, ValueError, LookupError, RuntimeError, *theirs) as error:
        hide_secrets(error)
        raise explained(error, reference, cache=cache_directory(), endpoint=where) from error
    finally:
        logger.setLevel(before)


def progress_bar(advance: Advance) -> type[Any]:
    """Return a progress bar for huggingface_hub that shows nothing and passes on what it counts."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments: object, initial: int = 0, **options: object) -> None:
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]
            self.update(initial)

        def update(self, n: float | None = 1) -> None:
            advance(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            """Leave out the bytes on the wire: those on disk are counted."""

    return Bar


def _tree(pinned: Reference) -> list[RepoFile]:
    with asking(pinned):
        from huggingface_hub import HfApi, RepoFile

        entries = HfApi(endpoint=endpoint()).list_repo_tree(
            pinned.repo, recursive=True, revision=pinned.revision, repo_type=pinned.kind
        )
        return [entry for entry in entries if isinstance(entry, RepoFile)]
