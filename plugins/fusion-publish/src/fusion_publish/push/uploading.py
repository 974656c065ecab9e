"""Uploads files in one commit, through huggingface_hub.

An interrupted upload loses nothing: the hub keeps every large file that it has received, and
huggingface_hub asks before it sends one. Readers of the repository see all files or none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core import hub
from fusion_core.errors import HubError
from fusion_publish.push.advice import UPLOAD
from fusion_publish.push.replacing import find_obsolete

if TYPE_CHECKING:
    from collections.abc import Sequence

    from huggingface_hub import HfApi, ModelInfo

    from fusion_publish.push.files import PublishedFile


@dataclass(frozen=True)
class Destination:
    """A place for files on the hub, and the commit that brings them there."""

    reference: hub.Reference
    message: str
    description: str = ""
    #: whether a repository that does not exist yet is created as a private one
    private: bool = False
    create_pr: bool = False
    #: patterns of files in the repository that stay
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Upload:
    """The address of a commit or of a pull request, and the files that it removes.

    The address is None if a pull request was asked for and the hub has these files already.
    """

    address: str | None
    removed: Sequence[str]


def upload(files: Sequence[PublishedFile], destination: Destination) -> Upload:
    """Upload files in the place of those of an earlier merge.

    Raises `HubError` for everything that the hub or the network refuses, and for files in the
    repository that are not of a merge.
    """
    reference = destination.reference
    with hub.report_hub_errors(reference, UPLOAD):
        from huggingface_hub import (
            CommitOperationAdd,
            CommitOperationDelete,
            HfApi,
            get_token,
        )

        if get_token() is None:
            raise HubError(
                f"no token to push to {reference.repo} with: you are not logged in to the hub",
                hint=f"To push, {hub.LOG_IN}; the token needs write permission.",
            )
        api = HfApi(endpoint=hub.endpoint())
        head = _find_repository(api, destination)
        if reference.revision != "main":  # a branch that is missing starts from main
            branch = _find_info(api, reference.repo, reference.revision)
            head = head if branch is None else str(branch.sha)
        names = {file.name for file in files}
        obsolete = find_obsolete(reference.at(head), names, destination.keep)
        if reference.revision != "main" and not destination.create_pr:
            api.create_branch(reference.repo, branch=reference.revision, exist_ok=True)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(file.name, file.path) for file in files),
            *(CommitOperationDelete(name) for name in obsolete),
        ]
        try:
            commit = api.create_commit(
                reference.repo,
                operations,
                commit_message=destination.message,
                commit_description=destination.description,
                revision=None if destination.create_pr else reference.revision,
                create_pr=destination.create_pr,
                parent_commit=head,
            )
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"Nothing is published yet. {UPLOAD.interrupted}")
            raise
    address = commit.pr_url if destination.create_pr else str(commit.commit_url)
    return Upload(address, obsolete)


def _find_repository(api: HfApi, destination: Destination) -> str:
    """Return the commit of the repository's main branch; create the repository if it is missing.

    Raises `HubError` for an existing public repository if a private one was asked for.
    """
    repository = destination.reference.repo
    info = _find_info(api, repository, "main")
    if info is None:
        api.create_repo(repository, private=destination.private or None)
        info = api.model_info(repository)
    elif destination.private and not info.private:
        raise HubError(
            f"--private: {repository} exists and is public",
            hint="Make it private in its settings on the hub, or leave out --private.",
        )
    return str(info.sha)


def _find_info(api: HfApi, repository: str, revision: str) -> ModelInfo | None:
    """Return what the hub says of a branch, or None if it or its repository does not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return api.model_info(repository, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return None
