"""Configurations of other tools as recipes: what a plugin that imports them returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class ImportedRecipe:
    """The recipe that a configuration of another tool stands for."""

    #: the tool's name, as its users write it
    tool: str
    #: sections as `run_fusion` takes them
    recipe: Mapping[str, Any]
    #: what has no effect, or a different one
    warnings: Sequence[str] = ()
    #: comments on sections and options, by their keys from the outside in
    comments: Mapping[tuple[str, ...], str] = field(default_factory=dict)
