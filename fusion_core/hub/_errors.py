"""Translation of the hub's failures to one line that says what failed and one that says what to do.

A message contains only the status of a request and the host of an address, because the rest may
carry tokens.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fusion_core.errors import DiskError, FusionError, HubError
from fusion_core.formatting import redact_secrets
from fusion_core.hub._advice import DOWNLOAD
from fusion_core.hub._cache import cache_directory, endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from fusion_core.hub._advice import Advice, Texts
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
#: The texts of Xet, which raises plain exceptions.
_XET_NOT_SENT = "error sending request"
_XET_DISK_FULL = re.compile(r"No space left|\bos error 28\b")
_SECRETS = re.compile(r"hf_[A-Za-z0-9]+|https?://\S+|(?i:bearer)\s+\S+")


def translate(
    error: Exception,
    reference: Reference,
    *,
    cache: Path,
    address: str,
    advice: Advice = DOWNLOAD,
) -> FusionError:
    """Return the error to raise for an exception of huggingface_hub."""
    causes = list(_causes(error))
    reason = next(filter(None, map(_disk_failure, causes)), None)
    if reason is not None and advice.fills_cache:
        return DiskError(
            f"{reference} cannot be downloaded to {cache}: {reason}",
            hint="Free some space or correct the permissions there, or set HF_HOME to another "
            "directory.",
        )
    for cause in causes:
        for base in type(cause).__mro__:  # the most specific class first
            if base.__name__ in advice.classes:
                return _fill_in(advice.classes[base.__name__], reference)
    responses = (getattr(cause, "response", None) for cause in causes)
    response = next((response for response in responses if response is not None), None)
    if response is not None:
        return _http_failure(response, reference, address, advice)
    return _network_failure(error, causes, reference, address, advice)


@contextmanager
def report_hub_errors(reference: Reference, advice: Advice = DOWNLOAD) -> Iterator[None]:
    """Translate huggingface_hub's exceptions to `FusionError`s, and silence its log meanwhile.

    Its warnings show whole URLs, which may be signed. `advice` says what a failure means for the
    user.
    """
    address = endpoint() or "huggingface.co"
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    http_errors = (http_library().HTTPError, http_library().InvalidURL)
    try:
        yield
    except (OSError, ValueError, LookupError, RuntimeError, *http_errors) as error:
        hide_secrets(error)
        raise translate(
            error, reference, cache=cache_directory(), address=address, advice=advice
        ) from error
    finally:
        logger.setLevel(level)


def hide_secrets(error: BaseException) -> None:
    """Remove credentials from the texts of an error and its causes, which tracebacks show."""
    for cause in _causes(error):
        cause.args = tuple(
            redact_secrets(part) if isinstance(part, str) else part for part in cause.args
        )


def not_cached(reference: Reference, cache: Path, path: str = "") -> HubError:
    """Return the error for a repository, or a file of it, that an offline run lacks."""
    subject = f"{path} of {reference}" if path else str(reference)
    return HubError(
        f"{subject} is not in the cache {cache}, and HF_HUB_OFFLINE forbids downloading it",
        hint="Run once with the network (unset HF_HUB_OFFLINE); the cache then serves later runs.",
    )


@contextmanager
def add_advice(advice: str) -> Iterator[None]:
    """Append advice to the hint of a `HubError` raised inside."""
    try:
        yield
    except HubError as error:
        hint = "\n".join(filter(None, (error.hint, advice)))
        raise HubError(error.message, hint=hint) from error


def http_library() -> Any:  # noqa: ANN401 - a module: httpx, or httpx2 from huggingface_hub 2 on
    """Return the HTTP library that huggingface_hub uses."""
    from huggingface_hub import utils

    return utils.httpx  # type: ignore[attr-defined]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors behind it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _disk_failure(error: BaseException) -> str | None:
    """Return the file system's reason, None if the error is not about the disk."""
    if isinstance(error, OSError) and error.errno in _DISK:
        return error.strerror or str(error)
    is_local = (
        isinstance(error, OSError | RuntimeError) and getattr(error, "response", None) is None
    )
    return os.strerror(errno.ENOSPC) if is_local and _XET_DISK_FULL.search(str(error)) else None


def _fill_in(texts: Texts, reference: Reference) -> HubError:
    values = {
        "repo": reference.repo,
        "revision": reference.revision,
        "kind": reference.kind,
        "folder": "datasets/" if reference.kind == "dataset" else "",
    }
    message, hint = (text.format(**values) for text in texts)
    return HubError(message, hint=hint)


def _http_failure(
    response: Any,  # noqa: ANN401 - of either HTTP library
    reference: Reference,
    address: str,
    advice: Advice,
) -> HubError:
    status = response.status_code
    # The hub answers 401 for a repository that is missing or private; a bad token is said so.
    if status == 401 and "credentials" not in response.headers.get("X-Error-Message", ""):  # noqa: PLR2004
        return _fill_in(advice.classes["RepositoryNotFoundError"], reference)
    if status >= 500:  # noqa: PLR2004 - the server's fault
        return HubError(
            f"the hub at {address} is failing ({status}); request: {reference}",
            hint=advice.failing,
        )
    message, hint = advice.statuses.get(status, ("the hub refuses the request", None))
    return HubError(f"{message} ({status}); request: {reference}", hint=hint)


def _network_failure(
    error: Exception,
    causes: Sequence[BaseException],
    reference: Reference,
    address: str,
    advice: Advice,
) -> HubError:
    """Return the error for a missing, cut or malformed response."""
    if any(map(_is_unreachable, causes)):
        return HubError(
            f"the hub at {address} cannot be reached; request: {reference}",
            hint=advice.unreachable,
        )
    text = _SECRETS.sub("[...]", str(error).strip().partition("\n")[0])[:200]
    is_cut = any(isinstance(cause, http_library().TransportError) for cause in causes)
    if is_cut or "Consistency check failed" in text:
        return HubError(
            f"the {advice.action} of {reference} was interrupted", hint=advice.interrupted
        )
    return HubError(
        f"the {advice.action} of {reference} failed: {type(error).__name__}: {text}",
        hint="Run again; if the error persists, check HF_ENDPOINT and the proxy.",
    )


def _is_unreachable(error: BaseException) -> bool:
    library = http_library()
    lost = (library.ConnectError, library.TimeoutException, library.ProxyError)
    # Xet raises the bare classes. Their subclasses, such as a reset, mean a connection that broke.
    if isinstance(error, (*lost, ConnectionRefusedError)):
        return True
    if type(error) in {ConnectionError, TimeoutError}:
        return True
    return isinstance(error, RuntimeError) and _XET_NOT_SENT in str(error)
