"""Files on their way from the hub to the cache, each checked when it arrives."""

from __future__ import annotations

import logging
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event, Lock, get_ident
from typing import TYPE_CHECKING, Any, Self

from fusion_core.hub._cache import RemoteFile, cache_directory, endpoint, room_for, snapshot_of
from fusion_core.hub._failures import explained, hide_secrets, http
from fusion_core.hub._integrity import check_digest, discard
from fusion_core.shown import amount

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion_core.hub.reference import Reference
    from fusion_core.progress import Advance, Progress

_FILES_AT_ONCE = 4
_LOOK_UP = 0.2  # seconds
_BOT = "SFconvertbot"
#: Repositories may have their discussions turned off.
_NO_DISCUSSIONS = {403, 404}


def ask_commit(reference: Reference) -> str:
    """Return the commit that a revision is."""
    with asking(reference):
        from huggingface_hub import HfApi

        found = HfApi(endpoint=endpoint()).repo_info(
            reference.repo, revision=reference.revision, repo_type=reference.kind
        )
    return str(found.sha)


def ask_listing(pinned: Reference) -> list[RemoteFile]:
    """Return a commit's files, with their hashes."""
    with asking(pinned):
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        found = HfApi(endpoint=endpoint()).list_repo_tree(
            pinned.repo, recursive=True, revision=pinned.revision, repo_type=pinned.kind
        )
        return [
            RemoteFile(each.path, each.size, each.lfs.sha256 if each.lfs else each.blob_id)
            for each in found
            if isinstance(each, RepoFile)
        ]


def ask_conversions(pinned: Reference) -> list[str]:
    """Return the pull requests in which the hub's own bot offers safetensors, oldest first.

    Anybody may open a pull request; only those of the bot count.
    """
    with asking(pinned):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            found = list(
                HfApi(endpoint=endpoint()).get_repo_discussions(
                    pinned.repo, author=_BOT, discussion_type="pull_request", repo_type=pinned.kind
                )
            )
        except HfHubHTTPError as error:
            if error.response.status_code in _NO_DISCUSSIONS:
                return []
            raise
        ours = (each for each in found if each.author == _BOT and each.is_pull_request)
        return [f"refs/pr/{each.num}" for each in sorted(ours, key=lambda each: each.num)]


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
    found = bytearray()
    with asking(pinned), client.http_stream_backoff("GET", url, headers=headers) as answer:
        client.hf_raise_for_status(answer)
        for chunk in answer.iter_bytes():
            found += chunk
            if len(found) >= count:  # a server that does not know ranges sends everything
                break
    return bytes(found[:count])


def keep_listing(pinned: Reference) -> None:
    """Have the cache keep a commit's listing: by it a run without network knows what is missing.

    The client writes it with a snapshot, here one of no files.
    """
    from huggingface_hub import snapshot_download

    with asking(pinned):
        snapshot_download(pinned.repo, allow_patterns=[], tqdm_class=_no_bar(), **_where(pinned))


def transfer(pinned: Reference, wanted: Sequence[RemoteFile], progress: Progress) -> None:
    """Download files of a commit to the cache; an interrupt ends it at the next chunk."""
    total = sum(each.size for each in wanted)
    free = room_for(str(pinned), total, cache_directory())
    label = f"download {pinned.repo} ({amount(total)}, {amount(free)} are free)"
    with asking(pinned), progress.track(label, total=total, unit="B") as advance:
        stop = Event()
        bar = _bar(advance, stop)
        with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="fusion-hub") as threads:
            try:
                _wait_for({threads.submit(_transfer_one, pinned, each, bar) for each in wanted})
            except BaseException as error:
                error.add_note("Complete files are kept: the same command fetches the others.")
                stop.set()
                _abort_xet()
                threads.shutdown(wait=False, cancel_futures=True)
                raise


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


def _wait_for(transfers: set[Future[None]]) -> None:
    """Wait for all, or raise what the first of them that fails raises.

    Looks up now and then: an interrupt that comes just as the main thread begins to wait for a lock
    is seen only when the wait ends.
    """
    while transfers:
        done, transfers = wait(transfers, timeout=_LOOK_UP, return_when=FIRST_COMPLETED)
        for each in done:
            each.result()


def _transfer_one(pinned: Reference, file: RemoteFile, bar: type[Any]) -> None:
    """Download a file and check its hash; what is not right does not stay."""
    from huggingface_hub import hf_hub_download

    hf_hub_download(pinned.repo, file.path, tqdm_class=bar, **_where(pinned))
    path = snapshot_of(pinned) / file.path
    try:
        check_digest(path, file.digest, f"{pinned}: {file.path}")
    except BaseException:
        discard(path)
        raise


def _where(pinned: Reference) -> dict[str, Any]:
    return {
        "repo_type": pinned.kind,
        "revision": pinned.revision,
        "cache_dir": cache_directory(),
        "endpoint": endpoint(),
    }


def _abort_xet() -> None:
    """End the transfers that Xet has on its own threads: they hear of nothing that a bar raises."""
    try:
        from huggingface_hub.utils._xet import abort_xet_session
    except ImportError:  # a version that reads Xet's files over HTTP, or ends a session otherwise
        return
    abort_xet_session()  # type: ignore[no-untyped-call]


class _StoppedError(Exception):
    """Another file's download failed, or the user interrupted."""


def _bar(advance: Advance, stop: Event) -> type[Any]:
    """Return a class that huggingface_hub takes for a progress bar of tqdm's.

    It raises on the thread that downloads. Xet advances it from another, where that ends nothing.
    """
    lock = Lock()

    class Bar:
        total = n = 0

        def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
            self._owner = get_ident()
            self.update(initial)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def update(self, count: float | None = 1) -> None:
            if stop.is_set() and get_ident() == self._owner:
                raise _StoppedError
            with lock:
                advance(int(count or 0))

        def update_transfer(self, count: float | None = 1) -> None: ...

        def __getattr__(self, _: str) -> Any:  # noqa: ANN401 - whatever else a bar can do
            return lambda *_, **__: None

    return Bar


def _no_bar() -> type[Any]:
    from huggingface_hub.utils.tqdm import tqdm

    def start(bar: Any, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - tqdm's
        tqdm.__init__(bar, *arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]

    return type("NoBar", (tqdm,), {"__init__": start})
