"""Choose tasks by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.errors import RecipeError
from fusion_core.formatting import suggest

if TYPE_CHECKING:
    from collections.abc import Sequence


def choose_tasks(wanted: Sequence[str] | None, known: Sequence[str], option: str) -> list[str]:
    """Return the wanted tasks in the order given; all known tasks for None.

    Raises `RecipeError` naming `option` for an unknown or repeated task.
    """
    names = list(known if wanted is None else wanted)
    for name in names:
        if name not in known:
            raise unknown_task(name, known, option)
    if repeated := [name for name in known if names.count(name) > 1]:
        raise RecipeError(f"{option}: {repeated[0]!r} is named twice")
    return names


def unknown_task(name: str, known: Sequence[str], option: str) -> RecipeError:
    """Return the error for an unknown task, with the closest known names."""
    guess = suggest(name, known)
    return RecipeError(
        f"{option}: unknown task {name!r}{guess and f'; {guess}'}",
        hint=f"Tasks: {', '.join(known)}",
    )
