"""Where the output of a run goes that names none: `outputs/<pool>-<algorithm>-<n>`."""

from __future__ import annotations

import json
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core.weights.writing.disk import writing
from fusion_core.weights.writing.lock import is_locked
from fusion_core.weights.writing.workplace import workplaces_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from fusion_core.weights.writing.workplace import Workplace

OUTPUTS = Path("outputs")


def free_paths(stem: str, resumed: Mapping[str, Any] | None) -> Iterator[Path]:
    """Yield the paths `outputs/<stem>-<n>` that are free, as far as can be told.

    A recipe that is `resumed` first goes on with its own work; others leave that alone.
    """
    with writing(OUTPUTS):
        mine = [] if resumed is None else [place.output for place in unfinished(resumed)]
        taken = {place.output for place in workplaces_in(OUTPUTS)}
        numbers = (path for n in count(1) if (path := OUTPUTS / f"{stem}-{n}") not in taken)
        yield from (path for path in chain(mine, numbers) if not path.exists())


def unfinished(recipe: Mapping[str, Any]) -> list[Workplace]:
    """Return what dead runs of a resolved recipe left among the outputs that have numbers."""
    as_stored = json.loads(json.dumps(recipe))
    places = (place for place in workplaces_in(OUTPUTS) if place.recipe == as_stored)
    return [place for place in places if not is_locked(place.output)]
