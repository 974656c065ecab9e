"""How a run is carried out, whatever it merges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusion_core.planning.trust import trust_in_environment
from fusion_core.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out: nothing here changes the model that comes out."""

    evaluate: bool = True
    overwrite: bool = False
    #: go on with what a run of the same recipe, inputs and versions left when it was stopped
    resume: bool = False
    #: measure the base and the experts although that was done before
    fresh: bool = False
    #: how the recipe's options were chosen, in words, which the report then says
    chosen: str | None = None
    device: str = "cpu"
    #: a name, or a mapping of name and options; default: the recipe's
    executor: str | Mapping[str, Any] | None = None
    #: short for the executor's option of this name
    workers: int | None = None
    progress: Progress = field(default_factory=Progress)
    block: frozenset[str] = frozenset()
    #: what a recipe may do that can run code, by name; default: what `FUSION_TRUST` lists
    trust: frozenset[str] = field(default_factory=trust_in_environment)
