"""Where the output of a run goes that names none: `outputs/<pool>-<algorithm>-<n>`."""

from __future__ import annotations

import json
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core.weights import held_in_memory
from fusion_core.weights.writing.disk import writing
from fusion_core.weights.writing.lock import is_locked
from fusion_core.weights.writing.workplace import workplaces_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion_core.planning.plan import Plan
    from fusion_core.weights.writing.workplace import Workplace

OUTPUTS = Path("outputs")


def output_path(plan: Plan) -> Path | None:
    """Return where the output goes; of a number, a run makes sure again when it claims it."""
    given = plan.resolved.recipe.output.path
    if given is not None:
        return Path(given)
    live = any(map(held_in_memory, plan.pool.by_name.values()))
    return None if plan.resolved.model_pool is None or live else next(numbered(plan))


def numbered(plan: Plan) -> Iterator[Path]:
    """Yield the paths that are free, as far as can be told.

    A run that is resumed first goes on with its own work; others leave that alone.
    """
    assert plan.resolved.model_pool is not None  # noqa: S101 - `output_path` has looked
    stem = f"{plan.resolved.model_pool.name}-{plan.algorithm_name}-"
    with writing(OUTPUTS):
        mine = [place.output for place in unfinished(plan)] if plan.options.resume else []
        taken = {place.output for place in workplaces_in(OUTPUTS)}
        numbers = (path for n in count(1) if (path := OUTPUTS / f"{stem}{n}") not in taken)
        yield from (path for path in chain(mine, numbers) if not path.exists())


def unfinished(plan: Plan) -> list[Workplace]:
    """Return what dead runs of a plan's recipe left among the outputs that have numbers."""
    recipe = json.loads(json.dumps(plan.recipe))
    places = (each for each in workplaces_in(OUTPUTS) if each.recipe == recipe)
    return [place for place in places if not is_locked(place.output)]
