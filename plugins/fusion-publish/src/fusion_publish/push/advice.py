"""The texts of errors of an upload."""

from __future__ import annotations

from fusion_core.hub import LOG_IN, Advice

_AGAIN = "Run the same command again: it sends only what the hub does not have yet."
UPLOAD = Advice(
    action="upload",
    classes={
        "RepositoryNotFoundError": (
            "the hub has no {kind} {repo}, or you may not see it",
            f"Check the spelling of the owner; {LOG_IN} with an account that may write there.",
        ),
        "RevisionNotFoundError": (
            "{repo} has no revision {revision!r}",
            "Name an existing branch with --revision, or leave the option out.",
        ),
        "OfflineModeIsEnabled": (
            "{repo} cannot be uploaded: the hub client is offline",
            "Start a new process without HF_HUB_OFFLINE.",
        ),
    },
    statuses={
        400: (
            "the hub does not accept the files or the model card",
            "Correct README.md; huggingface.co shows what its metadata may contain.",
        ),
        401: (
            "the hub does not accept your token",
            "Log in again with `hf auth login`, or correct or unset HF_TOKEN.",
        ),
        402: (
            "the hub refuses to store more for this account",
            "Free some space in the account's repositories, or push to another account.",
        ),
        403: (
            "the hub does not let you write there",
            (
                "Use a token with write permission, push to an account of yours, or propose the "
                "files with --create-pr."
            ),
        ),
        409: ("the repository changed during the upload", _AGAIN),
        412: ("the repository changed during the upload", _AGAIN),
        413: (
            "the hub refuses a file or commit of this size",
            "Merge again with smaller files: --set output.shard_size=5GB",
        ),
        429: ("the hub limits your requests", f"Wait some minutes. {_AGAIN}"),
    },
    failing=f"Wait some minutes. {_AGAIN}",
    interrupted=_AGAIN,
    unreachable=f"Check the network, the proxy and HF_ENDPOINT. {_AGAIN}",
)
