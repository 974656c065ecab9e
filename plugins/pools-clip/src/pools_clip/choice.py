"""Which of several named tasks."""

import difflib
from collections.abc import Sequence

from fusion_core.errors import RecipeError


def chosen(wanted: Sequence[str] | None, known: Sequence[str], option: str) -> list[str]:
    """Return the tasks asked for, in the order asked for; all known ones for None.

    Raises `RecipeError` naming `option` for an unknown task or one that is named twice.
    """
    names = list(known if wanted is None else wanted)
    for name in names:
        if name not in known:
            raise unknown_task(name, known, option)
    if repeated := [name for name in known if names.count(name) > 1]:
        raise RecipeError(f"{option}: {repeated[0]!r} is named twice")
    return names


def unknown_task(name: str, known: Sequence[str], option: str) -> RecipeError:
    """Return the error for a task that there is not, with the closest names."""
    close = difflib.get_close_matches(name, known)
    guess = f"; did you mean {' or '.join(close)}?" if close else ""
    return RecipeError(f"{option}: unknown task {name!r}{guess}", hint=f"Tasks: {', '.join(known)}")
