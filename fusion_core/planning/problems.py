"""What is wrong with a recipe, gathered so that all of it is said at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from fusion_core.errors import PluginError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class Problems:
    """The errors that were met so far."""

    found: list[RecipeError | PluginError] = field(default_factory=list)

    def attempt(
        self, function: Callable[..., ResultT], *arguments: object, **options: object
    ) -> ResultT | None:
        """Call a function; None if it finds a problem, which is kept."""
        try:
            return function(*arguments, **options)
        except (RecipeError, PluginError) as error:
            self.found.append(error)
            return None

    def raise_all(self) -> None:
        """Raise what was found: one error as it is, several as one `RecipeError`."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            hints = dict.fromkeys(each.hint for each in self.found if each.hint)
            raise RecipeError("\n".join(each.message for each in self.found), hint="\n".join(hints))
