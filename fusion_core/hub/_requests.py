"""Requests to the hub: commits, listings, pull requests, and files, each verified by its hash.

huggingface_hub downloads, resumes and locks, but compares sizes only. Files are downloaded one
after the other: huggingface_hub fetches the parts of a large file in parallel itself, and on the
main thread an interrupt reaches it at once.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from fusion_core.errors import HubError
from fusion_core.formatting import format_bytes
from fusion_core.hub._cache import cache_directory, check_free_space, endpoint, snapshot_directory
from fusion_core.hub._errors import report_hub_errors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from huggingface_hub import HfApi, RepoFile

    from fusion_core.hub.reference import Reference
    from fusion_core.progress import Advance, Progress

_CONVERSION_BOT = "SFconvertbot"
#: Statuses of a repository whose discussions are turned off.
_NO_DISCUSSIONS = {403, 404}
_SHA256_DIGITS = 64


def request_commit(reference: Reference) -> str:
    """Return the commit behind a revision."""
    with report_hub_errors(reference):
        info = _api().repo_info(
            reference.repo, revision=reference.revision, repo_type=reference.kind
        )
    return str(info.sha)


def request_listing(pinned: Reference) -> dict[str, int]:
    """Return the file sizes of a commit by path, and store the listing in the cache.

    An offline run learns from the stored listing which files are missing. huggingface_hub stores
    the listing together with a snapshot, here one without files.
    """
    from huggingface_hub import snapshot_download

    sizes = {file.path: file.size for file in _request_tree(pinned)}
    with report_hub_errors(pinned):
        bar = _progress_bar(lambda *_, **__: None)
        snapshot_download(pinned.repo, allow_patterns=[], tqdm_class=bar, **_arguments_for(pinned))
    return sizes


def request_digests(pinned: Reference) -> dict[str, str]:
    """Return the hashes of a commit's files by path: a SHA-256, or the git object id.

    The listing in the cache has no SHA-256.
    """
    return {
        file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in _request_tree(pinned)
    }


def request_conversions(pinned: Reference) -> list[str]:
    """Return the pull requests in which the hub's own bot offers safetensors, oldest first.

    Anybody may open a pull request, so only those of the bot count.
    """
    with report_hub_errors(pinned):
        from huggingface_hub.errors import HfHubHTTPError

        try:
            discussions = list(
                _api().get_repo_discussions(
                    pinned.repo,
                    author=_CONVERSION_BOT,
                    discussion_type="pull_request",
                    repo_type=pinned.kind,
                )
            )
        except HfHubHTTPError as error:
            if error.response.status_code in _NO_DISCUSSIONS:
                return []
            raise
    numbers = [
        discussion.num
        for discussion in discussions
        if discussion.author == _CONVERSION_BOT and discussion.is_pull_request
    ]
    return [f"refs/pr/{number}" for number in sorted(numbers)]


def request_beginning(pinned: Reference, path: str, count: int) -> bytes:
    """Return the first `count` bytes of a file without downloading the rest."""
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
    with (
        report_hub_errors(pinned),
        client.http_stream_backoff("GET", url, headers=headers) as response,
    ):
        client.hf_raise_for_status(response)
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) >= count:  # a server without ranges sends the whole file
                break
    return bytes(content[:count])


def download_files(pinned: Reference, sizes: Mapping[str, int], progress: Progress) -> None:
    """Download files of a commit to the cache; `sizes` maps their paths to bytes."""
    total = sum(sizes.values())
    free = check_free_space(str(pinned), total, cache_directory())
    digests = request_digests(pinned)
    label = f"download {pinned.repo} ({format_bytes(total)}, {format_bytes(free)} are free)"
    with report_hub_errors(pinned), progress.track(label, total=total, unit="B") as advance:
        from huggingface_hub import hf_hub_download

        bar = _progress_bar(advance)
        try:
            for path in sizes:
                hf_hub_download(pinned.repo, path, tqdm_class=bar, **_arguments_for(pinned))
                _verify(pinned, path, digests.get(path))
        except KeyboardInterrupt as error:
            error.add_note("Complete files are kept: the same command fetches the others.")
            raise


def _arguments_for(pinned: Reference) -> dict[str, Any]:
    """Return the arguments that tell huggingface_hub's functions the commit, cache and endpoint."""
    return {
        "repo_type": pinned.kind,
        "revision": pinned.revision,
        "cache_dir": cache_directory(),
        "endpoint": endpoint(),
    }


def _progress_bar(advance: Advance) -> type[Any]:
    """Return a bar class for huggingface_hub that prints nothing and passes counts to `advance`."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments: object, initial: int = 0, **options: object) -> None:
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]
            self.update(initial)

        def update(self, n: float | None = 1) -> None:
            advance(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            """Ignore the bytes on the wire: `update` counts those on disk."""

    return Bar


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint())


def _request_tree(pinned: Reference) -> list[RepoFile]:
    with report_hub_errors(pinned):
        from huggingface_hub import RepoFile

        entries = _api().list_repo_tree(
            pinned.repo, recursive=True, revision=pinned.revision, repo_type=pinned.kind
        )
        return [entry for entry in entries if isinstance(entry, RepoFile)]


def _verify(pinned: Reference, path: str, expected: str | None) -> None:
    """Compare a file with its listed hash, and remove it from the cache unless they match."""
    if expected is None:
        return
    file = snapshot_directory(pinned) / path
    actual = ""
    try:
        actual = _digest(file, expected)
    finally:  # after an interrupt too: an unverified file must not stay
        if actual != expected:
            _remove(file)
    if actual != expected:
        raise HubError(
            f"checksum mismatch for {pinned}: {path}: the hub lists {expected[:12]}..., "
            f"got {actual[:12]}...",
            hint="The file was removed from the cache. Run again to download it.",
        )


def _digest(file: Path, expected: str) -> str:
    """Return the SHA-256 (large files) or the git object id (small files), like `expected`."""
    if len(expected) == _SHA256_DIGITS:
        digest = hashlib.sha256()
    else:
        header = f"blob {file.stat().st_size}\0".encode()
        digest = hashlib.sha1(header, usedforsecurity=False)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: digest).hexdigest()


def _remove(path: Path) -> None:
    """Remove a file from the cache: the link in the snapshot and the blob that it points to."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)
