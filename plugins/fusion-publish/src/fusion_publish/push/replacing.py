"""The files of a repository that a push removes: those of the merge that was there before.

Programs that load a model prefer some names to others: a single file of weights to shards, and an
adapter to a model. A file of an earlier merge could so hide the new one.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from fusion_core import hub
from fusion_core.errors import CheckpointError, HubError
from fusion_publish.verification.locating import list_recorded
from fusion_publish.verification.record import PROVENANCE
from fusion_publish.verification.unlisted import MADE, is_allowed, matches

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_MOST_NAMES = 5


def find_obsolete(
    pinned: hub.Reference, names: Collection[str], keep: Sequence[str] = ()
) -> list[str]:
    """Return the files of an earlier merge that are not among `names`, the files of the new one.

    Files that match a pattern of `keep` stay. Raises `HubError` for files that are neither
    documents nor of a merge: `fuse verify` would refuse the repository, or a model that is not ours
    would be replaced.
    """
    listing = hub.list_files(pinned)
    present = {name for name in listing if not matches(name, keep)}
    made: set[str] = set()
    if PROVENANCE in listing:
        with suppress(CheckpointError):  # another tool's file, or a damaged one
            made = {*list_recorded(pinned), *names}
            made.update(name for name in present if matches(name, MADE))
    if foreign := sorted(name for name in present - made if not is_allowed(name)):
        rest = len(foreign) - _MOST_NAMES
        listed = ", ".join(foreign[:_MOST_NAMES]) + (f" and {rest} others" if rest > 0 else "")
        raise HubError(
            f"{pinned.repo} has files that belong to no merge of fuse: {listed}",
            hint="Delete them on the hub, leave them there with --keep PATTERN, or push to another "
            "repository.",
        )
    return sorted(present & made - {*names})
