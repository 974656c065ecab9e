"""The options of a run that do not change its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusion_core.planning.trust import trust_in_environment
from fusion_core.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to carry out a run; no option changes the merged model."""

    evaluate: bool = True
    overwrite: bool = False
    #: continue a stopped run of the same recipe, inputs and versions
    resume: bool = False
    #: measure every model again instead of reusing earlier measurements
    fresh: bool = False
    #: how the recipe's options were chosen, in words, for the report
    chosen: str | None = None
    device: str = "cpu"
    #: a name, or a mapping of name and options; default: the recipe's executor
    executor: str | Mapping[str, Any] | None = None
    #: the executor's option `workers`
    workers: int | None = None
    progress: Progress = field(default_factory=Progress)
    #: the distributions whose plugins are not loaded
    block: frozenset[str] = frozenset()
    #: the names under which the recipe may run code; default: those in `FUSION_TRUST`
    trust: frozenset[str] = field(default_factory=trust_in_environment)
