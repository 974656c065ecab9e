"""The cells of the study on language models: a method, its data, and the experts it merges."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

#: The seed on which options were chosen, and those that are reported apart.
CHOSEN_ON, REPORTED = 0, (1, 2)
#: The tasks of a pool, by its name. Options were chosen on experts of `four`.
POOLS = {
    "four": ("records", "dates", "largest", "moods"),
    "other four": ("numerals", "odd", "topics", "letters"),
}
#: Training steps of a task's expert, 8 examples each. Other tasks take 20.
STEPS = {"largest": 32, "numerals": 32, "odd": 28}
#: Options of all searches: 20 steps of 4 prompts per task, with passes in bf16.
SEARCH = {"steps": 20, "batch_size": 4, "precision": "bf16"}


@dataclass(frozen=True)
class Cell:
    """One way to merge a pool's experts."""

    method: str
    #: unlabeled prompts per task
    prompts: int = 0
    #: who writes them: the task's own, or `experts`, or `base`
    writer: Literal["own", "experts", "base"] = "own"
    #: general prompts on which the base teaches
    general: int = 0
    #: options of the method
    options: dict[str, Any] = field(default_factory=dict)


STRONG8, STRONG32 = Cell("strong", 8), Cell("strong", 32, "experts")
CELLS: dict[str, Cell] = {
    "base": Cell("base"),
    "task-arithmetic": Cell("task-arithmetic", options={"scale": 0.5}),
    "ties": Cell("ties", options={"scale": 1.0}),
    "tsv-m": Cell("tsv-m"),
    "8 own": STRONG8,
    "32 of the experts": STRONG32,
    "8 own, 32 general": replace(STRONG8, general=32),
    "32 of the experts, 32 general": replace(STRONG32, general=32),
    "8 own, one adapter": Cell("one adapter", 8, options={"lr": 1e-3}),
    "8 own, all weights": Cell("all weights", 8, options={"lr": 1e-4}),
}
MAIN = ("base", "experts", "tsv-m", "8 own", "32 of the experts")
#: The order in which missing cells are measured: pool, seed, names.
ORDER: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("four", 0, ("base", "experts", "tsv-m", "8 own", "8 own, 32 general")),
    ("four", 0, ("task-arithmetic", "32 of the experts", "8 own, one adapter")),
    ("four", 0, ("ties", "8 own, all weights", "32 of the experts, 32 general")),
    *(("four", seed, MAIN) for seed in REPORTED),
    ("other four", 0, (*MAIN, "8 own, 32 general")),
)
