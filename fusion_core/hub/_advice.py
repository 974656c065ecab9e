"""The texts of errors for one kind of request, such as downloads: what failed, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A message, and a hint that says what to do.
Texts = tuple[str, str]

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_PAGE = "https://huggingface.co/{folder}{repo}"


@dataclass(frozen=True)
class Advice:
    """The texts of errors for one kind of request.

    Texts of `classes` may contain `{repo}`, `{revision}`, `{kind}` (model or dataset) and
    `{folder}` (the beginning of the path of a page).
    """

    #: the kind of request, such as "download"
    action: str
    #: texts by the name of huggingface_hub's exception class; RepositoryNotFoundError is required
    classes: Mapping[str, Texts]
    #: texts by HTTP status, for responses without a class
    statuses: Mapping[int, Texts]
    #: hints for a server that fails, a connection that broke, and one that cannot be made
    failing: str
    interrupted: str
    unreachable: str
    #: whether the requests fill the cache, so that an error of the disk is about the cache
    fills_cache: bool = False


DOWNLOAD = Advice(
    action="download",
    classes={
        "GatedRepoError": (
            "{repo} is gated: its owner asks you to accept terms first",
            f"Accept them at {_PAGE}, then {LOG_IN}.",
        ),
        "RevisionNotFoundError": (
            "{repo} has no revision {revision!r}",
            (
                f"Its branches and tags are listed at {_PAGE}/tree/main. If a branch moved and its "
                "old commit is gone, fuse download looks the branch up again."
            ),
        ),
        "RemoteEntryNotFoundError": (
            "a requested file is missing from {repo}@{revision}",
            f"Its files are listed at {_PAGE}/tree/{{revision}}.",
        ),
        "RepositoryNotFoundError": (
            "the hub has no {kind} {repo}, or it is private",
            f"Check the spelling; for a private one, {LOG_IN}.",
        ),
        "OfflineModeIsEnabled": (
            "{repo}@{revision} is not in the cache, and the hub client is offline",
            "Start a new process without HF_HUB_OFFLINE.",
        ),
    },
    statuses={
        401: (
            "the hub does not accept your token",
            "Log in again with `hf auth login`, or correct or unset HF_TOKEN.",
        ),
        403: (
            "the hub does not let you read this",
            "Ask its owner, or use a token with the permission to read it.",
        ),
        429: (
            "the hub limits your requests",
            f"Wait some minutes and run again; to be allowed more, {LOG_IN}.",
        ),
    },
    failing="Run again later; complete files stay in the cache.",
    interrupted="Run again: complete files are kept.",
    unreachable="Check the network and proxy. HF_HUB_OFFLINE=1 runs with the files in the cache; "
    "`fuse list pools` shows which pools need no network.",
    fills_cache=True,
)
