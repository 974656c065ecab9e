"""What can go wrong with the hub, each as one line that says so and one that says what to do.

Nothing of a request but its status, and nothing of an address but its host, gets into a message:
both may carry tokens.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fusion_core.errors import DiskError, FusionError, HubError
from fusion_core.shown import without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fusion_core.hub.reference import Reference

_DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOTDIR,
}
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_PAGE = "https://huggingface.co/{folder}{repo}"
_UNKNOWN = (
    "the hub has no {kind} {repo}, or it is private",
    f"Check the spelling; for a private one, {_LOG_IN}.",
)
#: What huggingface_hub's errors mean, and what to do. The first that fits counts: some are kinds of
#: others further down.
_ERRORS = {
    "GatedRepoError": (
        "{repo} is gated: its owner asks you to accept terms first",
        f"Accept them at {_PAGE}, then {_LOG_IN}.",
    ),
    "RevisionNotFoundError": (
        "{repo} has no revision {revision!r}",
        (
            f"Its branches and tags are listed at {_PAGE}/tree/main. If a branch moved and the "
            "commit is gone, fuse download looks up what it is now."
        ),
    ),
    "RemoteEntryNotFoundError": (
        "a file that is wanted of {repo}@{revision} is not there",
        f"Its files are listed at {_PAGE}/tree/{{revision}}.",
    ),
    "RepositoryNotFoundError": _UNKNOWN,
    "OfflineModeIsEnabled": (
        "{repo}@{revision} is not in the cache, and the hub client is offline",
        "Start a new process without HF_HUB_OFFLINE.",
    ),
}
#: What an HTTP status means, and what to do.
_STATUSES = {
    401: (
        "the hub does not accept your token",
        "Log in anew with `hf auth login`, or correct or unset HF_TOKEN.",
    ),
    403: (
        "the hub does not let you read this",
        "Ask its owner, or use a token with the permission to read it.",
    ),
    429: (
        "the hub limits your requests",
        f"Wait some minutes and run again; to be allowed more, {_LOG_IN}.",
    ),
}
_LOST = {ConnectionError, TimeoutError}
_UNSENT = "error sending request"
_FULL = re.compile(r"No space left|\bos error 28\b")
_SECRETS = re.compile(r"hf_[A-Za-z0-9]+|https?://\S+|(?i:bearer)\s+\S+")


def explained(error: Exception, reference: Reference, *, cache: Path, endpoint: str) -> FusionError:
    """Return the error to raise for what huggingface_hub raised."""
    reason = next(filter(None, map(_refused_by_disk, _chain(error))), None)
    if reason is not None:
        return DiskError(
            f"{reference} cannot be downloaded to {cache}: {reason}",
            hint="Make room or mend the permissions there, or set HF_HOME to another place.",
        )
    return (
        _named(error, reference)
        or _refused(error, reference, endpoint)
        or _unreachable(error, reference, endpoint)
    )


def hide_secrets(error: BaseException) -> None:
    """Take credentials out of what an error, and those that it came from, say in a traceback."""
    for each in _chain(error):
        each.args = tuple(
            without_secrets(part) if isinstance(part, str) else part for part in each.args
        )


def not_cached(reference: Reference, cache: Path, missing: str = "") -> HubError:
    """Return the error for what an offline run lacks."""
    what = f"{missing} of {reference}" if missing else str(reference)
    return HubError(
        f"{what} is not in the cache {cache}, and HF_HUB_OFFLINE forbids to download it",
        hint="Run once with the network (unset HF_HUB_OFFLINE); the cache then serves later runs.",
    )


@contextmanager
def advising(advice: str) -> Iterator[None]:
    """Add advice to the hints of what is said about the hub's failures."""
    try:
        yield
    except HubError as error:
        hint = "\n".join(filter(None, (error.hint, advice)))
        raise HubError(error.message, hint=hint) from error


def _named(error: Exception, reference: Reference) -> HubError | None:
    """Explain the failures that huggingface_hub has classes for."""
    from huggingface_hub import errors

    for each in _chain(error):
        for name, said in _ERRORS.items():
            if isinstance(each, getattr(errors, name)):
                return _filled_in(said, reference)
    return None


def _filled_in(said: tuple[str, str], reference: Reference) -> HubError:
    words = {
        "repo": reference.repo,
        "revision": reference.revision,
        "kind": reference.kind,
        "folder": "datasets/" if reference.kind == "dataset" else "",
    }
    message, hint = (text.format(**words) for text in said)
    return HubError(message, hint=hint)


def _refused(error: Exception, reference: Reference, endpoint: str) -> HubError | None:
    """Explain the HTTP status of the answer that an error, or one behind it, reports."""
    answers = (getattr(each, "response", None) for each in _chain(error))
    response = next((answer for answer in answers if answer is not None), None)
    if response is None:
        return None
    status = response.status_code
    if status == 401 and "credentials" not in response.headers.get("X-Error-Message", ""):  # noqa: PLR2004
        return _filled_in(_UNKNOWN, reference)
    if status >= 500:  # noqa: PLR2004 - the server's fault
        return HubError(
            f"the hub at {endpoint} is failing ({status}), asked for {reference}",
            hint="Run again later; what is complete in the cache is kept.",
        )
    says, advises = _STATUSES.get(status, ("the hub refuses", None))
    return HubError(f"{says} ({status}), asked for {reference}", hint=advises)


def _refused_by_disk(error: BaseException) -> str | None:
    """Return what the file system said, None if it was not that; Xet says it in words only."""
    if isinstance(error, OSError) and error.errno in _DISK:
        return error.strerror or str(error)
    ours = isinstance(error, OSError | RuntimeError) and getattr(error, "response", None) is None
    return os.strerror(errno.ENOSPC) if ours and _FULL.search(str(error)) else None


def _unreachable(error: Exception, reference: Reference, endpoint: str) -> HubError:
    """Explain what happened on the way: no answer, half an answer, or one that makes no sense."""
    text = _SECRETS.sub("[...]", str(error).strip().partition("\n")[0])[:200]
    if any(map(_is_connection, _chain(error))):
        return HubError(
            f"the hub at {endpoint} cannot be reached, asked for {reference}",
            hint="Check the network and proxy. HF_HUB_OFFLINE=1 runs with what is in the cache; "
            "`fuse list pools` shows which pools need no network.",
        )
    if "Consistency check failed" in text or _is_cut(error):
        return HubError(
            f"a download of {reference} broke off",
            hint="Run again: files that are complete are kept.",
        )
    return HubError(
        f"{reference} cannot be read from the hub at {endpoint}: {type(error).__name__}: {text}",
        hint="Run again; if it stays, check HF_ENDPOINT and the proxy.",
    )


def http() -> Any:  # noqa: ANN401 - a module: httpx, or httpx2 from huggingface_hub 2 on
    """Return the HTTP library that huggingface_hub uses."""
    from huggingface_hub import utils

    return utils.httpx  # type: ignore[attr-defined]


def _is_connection(error: BaseException) -> bool:
    library = http()
    lost = (library.ConnectError, library.TimeoutException, library.ProxyError)
    # Xet raises the bare classes; of their subclasses a reset, for one, is a connection that broke.
    if isinstance(error, (*lost, ConnectionRefusedError)) or type(error) in _LOST:
        return True
    return isinstance(error, RuntimeError) and _UNSENT in str(error)  # or says it in words only


def _is_cut(error: Exception) -> bool:
    return any(isinstance(each, http().TransportError) for each in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
