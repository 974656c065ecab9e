"""Output paths of runs that name none: `outputs/<pool>-<algorithm>-<n>`."""

from __future__ import annotations

import json
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core.weights.writing.disk import report_disk_errors
from fusion_core.weights.writing.lock import is_locked
from fusion_core.weights.writing.workspace import find_workspaces

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from fusion_core.weights.writing.workspace import Workspace

OUTPUTS = Path("outputs")


def free_paths(stem: str, resumed: Mapping[str, Any] | None) -> Iterator[Path]:
    """Yield paths `outputs/<stem>-<n>` that seem free; another run may still claim one first.

    The outputs of stopped runs of the recipe `resumed` come first. Those of other stopped runs are
    not free.
    """
    with report_disk_errors(OUTPUTS):
        resumable = (
            [] if resumed is None else [staged.output for staged in find_unfinished(resumed)]
        )
        taken = {staged.output for staged in find_workspaces(OUTPUTS)}
        numbered = (path for n in count(1) if (path := OUTPUTS / f"{stem}-{n}") not in taken)
        yield from (path for path in chain(resumable, numbered) if not path.exists())


def find_unfinished(recipe: Mapping[str, Any]) -> list[Workspace]:
    """Return the staging directories in `outputs` of stopped runs of a resolved recipe."""
    as_stored = json.loads(json.dumps(recipe))
    staged = (staged for staged in find_workspaces(OUTPUTS) if staged.recipe == as_stored)
    return [directory for directory in staged if not is_locked(directory.output)]
