"""The cells of the study on language models: a method, its data, and the experts it merges."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

#: Options were chosen on seed 0, and a failure of seed 2 was diagnosed and mended.
UNSEEN = (1, 3)

_FOUR, _OTHERS = ("records", "dates", "largest", "moods"), ("numerals", "odd", "topics", "letters")
_CLASSES = ("thing", "part of speech", "part of the Bible", "dictionary")
#: The tasks of a pool, by its name. Options were chosen on experts of `four`.
POOLS = {
    "four": _FOUR,
    "records, dates": _FOUR[:2],
    "largest, moods": _FOUR[2:],
    "other four": _OTHERS,
    "eight": (*_FOUR, *_OTHERS),
    "rank 4": _FOUR,
    "rank 64": _FOUR,
    "full fine-tunes": _FOUR,
    "encoder": _CLASSES,
    "published encoder": _CLASSES,
    "published encoder, other tasks": ("verb", "idea", "testament", "source"),
    "encoder-decoder": ("kinds", "speech", "reverse", "roman", "past"),
}
#: The pools of small models. The published one is all-MiniLM-L6-v2, the others begin with nothing.
SMALL = (ENCODER, PUBLISHED_ENCODER, OTHER_TASKS, ENCODER_DECODER) = (
    "encoder",
    "published encoder",
    "published encoder, other tasks",
    "encoder-decoder",
)
#: How experts are trained: the rank of their adapters, or `None` where they learn all weights.
RANKS: dict[str, int | None] = dict.fromkeys(POOLS, 16) | {
    "rank 4": 4,
    "rank 64": 64,
    "full fine-tunes": None,
    **dict.fromkeys(SMALL),
}
#: Training steps of a task's expert, 8 examples each. Other tasks take 20.
STEPS = {"largest": 32, "numerals": 32, "odd": 28}
#: Options of all searches: 20 steps of 4 prompts per task, with passes in bf16.
SEARCH = {"steps": 20, "batch_size": 4, "precision": "bf16", "standardise": False}


@dataclass(frozen=True)
class Cell:
    """One way to merge a pool's experts."""

    method: str
    #: unlabeled prompts per task
    prompts: int = 0
    #: whose they are: the task's own, those of `another task`, general ones, or what models write
    writer: Literal["own", "another task", "general", "experts", "base"] = "own"
    #: general prompts on which the base teaches
    general: int = 0
    #: the transform whose sum of task vectors a search starts from
    start: Literal["orthogonalise", "isotropise", "disentangle"] | None = "orthogonalise"
    #: whether `featcal` calibrates the merge on the same prompts
    calibrated: bool = False
    #: options of the method
    options: dict[str, Any] = field(default_factory=dict)


SHORT, DOGE, MANY = "8 own, short", "doge", "256 own"
STRONG8 = Cell("strong", 8)
#: Scales of isotropic sums. 4 has the highest accuracy on the first set of the published encoder.
SCALES = (1, 2, 4)
#: Numbers of prompts on which merges are calibrated, or searched for from an isotropic sum.
CALIBRATIONS = (1, 8, 32)
CELLS: dict[str, Cell] = {
    "base": Cell("base"),
    "task-arithmetic": Cell("task-arithmetic", options={"scale": 0.5}),
    "ties": Cell("ties", options={"scale": 1.0}),
    "tsv-m": Cell("tsv-m"),
    "tsv-m, scale 0.7": Cell("tsv-m", options={"scale": 0.7}),
    DOGE: Cell(DOGE),
    "8 own": STRONG8,
    "32 of the experts": Cell("strong", 32, "experts"),
    "32 of the base": Cell("strong", 32, "base"),
    "32 of another task": Cell("strong", 32, "another task"),
    "32 general alone": Cell("strong", 32, "general"),
    "1 own": Cell("strong", 1),
    "4 own": Cell("strong", 4),
    "32 own": Cell("strong", 32),
    MANY: Cell("strong", 256),
    "120 own, 100 steps": Cell("strong", 120, options={"steps": 100}),
    "8 own, 32 general": replace(STRONG8, general=32),
    "8 own, one adapter": Cell("one adapter", 8, options={"lr": 1e-3}),
    "8 own, all weights": Cell("all weights", 8, options={"lr": 1e-4}),
    "joint training": Cell("joint training"),
    "8 own, 40 steps": replace(STRONG8, options={"steps": 40}),
    "8 own, plain start": replace(STRONG8, start=None, options={"init": 0.3}),
    "8 own, temperature 2": replace(STRONG8, options={"temperature": 2}),
    SHORT: replace(STRONG8, options={"steps": 8, "temperature": 1, "schedule": "cosine"}),
    "8 own, per layer": replace(STRONG8, options={"granularity": "layer"}),
    "8 own, AdaMerging": replace(
        STRONG8, start=None, options={"preset": "default", "init": 0.3, "lr": 0.05}
    ),
    **{
        f"{count} own, calibrated": Cell("strong", count, calibrated=True) for count in CALIBRATIONS
    },
    **{
        f"tsv-m, calibrated on {count}": Cell("tsv-m", count, calibrated=True)
        for count in CALIBRATIONS
    },
    **{f"iso-cts, scale {scale}": Cell("iso-cts", options={"scale": scale}) for scale in SCALES},
    **{
        f"{count} own, isotropic": Cell("strong", count, start="isotropise", options={"init": 4})
        for count in CALIBRATIONS
    },
    "120 own, 100 steps, isotropic": Cell(
        "strong", 120, start="isotropise", options={"init": 4, "steps": 100}
    ),
}
#: Numbers of examples of `strong` as it is now on classifiers: it chooses its start.
CHOICES = (1, 4, 8, 32)
_CHOSEN: dict[str, Any] = {"start": "disentangle", "options": {"standardise": None}}
CELLS |= {
    **{f"disentangle, {count} own": Cell("sum", count, **_CHOSEN) for count in CHOICES},
    **{f"{count} own, chosen": Cell("strong", count, **_CHOSEN) for count in CHOICES},
    "120 own, 100 steps, chosen": Cell(
        "strong", 120, start="disentangle", options={"standardise": None, "steps": 100}
    ),
    "32 own, chosen, calibrated": Cell("strong", 32, **_CHOSEN, calibrated=True),
}
CHOSEN = tuple(name for name, cell in CELLS.items() if cell.start == "disentangle")
WITHOUT_DATA = tuple(name for name, cell in CELLS.items() if cell.method == "iso-cts")
ISOTROPIC = (
    *WITHOUT_DATA,
    *(name for name, cell in CELLS.items() if cell.start == "isotropise"),
)
EXPERTS, BASE = "experts", "base"
MAIN = ("tsv-m", "8 own", "task-arithmetic", "ties", "8 own, 32 general")
FURTHER = ("8 own, all weights", "32 of the experts")
FOREIGN = ("32 of another task", "32 general alone")
COUNTS = ("1 own", "4 own", "32 own")
VARIANTS = (
    "8 own, temperature 2",
    "8 own, AdaMerging",
    "8 own, per layer",
    "8 own, plain start",
    "8 own, 40 steps",
)
#: The pools and seeds on which `SHORT` is compared with `8 own`. It was chosen on the first two.
COMPARED = (
    ("full fine-tunes", 1),
    ("four", 0),
    ("full fine-tunes", 3),
    ("rank 4", 1),
    ("four", 3),
    ("four", 1),
    ("four", 2),
    ("rank 64", 1),
    ("other four", 1),
    ("eight", 1),
)
#: The order in which missing cells are measured: pool, seed, names. A base is the same in all
#: pools, as is an expert, so each is measured once.
ORDER: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("four", 0, (BASE, EXPERTS, *MAIN)),
    ("four", 2, (EXPERTS, *MAIN)),
    *(("four", seed, (EXPERTS, *MAIN)) for seed in UNSEEN),
    ("four", 0, (FURTHER[0], "8 own, one adapter")),
    *(("four", seed, (*FURTHER, "joint training")) for seed in UNSEEN),
    *(("four", seed, ("32 of the base", *FOREIGN, MANY)) for seed in UNSEEN),
    ("four", 3, COUNTS),
    ("four", 3, VARIANTS),
    *((pool, 1, (EXPERTS, *MAIN[:2])) for pool in ("rank 4", "rank 64", "full fine-tunes")),
    ("full fine-tunes", 1, ("8 own, 32 general", *VARIANTS[:1])),
    ("full fine-tunes", 3, (EXPERTS, *MAIN[:2], *VARIANTS[:1])),
    ("four", 1, VARIANTS[:1]),
    ("other four", 1, (BASE, EXPERTS, *MAIN)),
    ("eight", 1, MAIN[:2]),
    ("records, dates", 1, MAIN[:2]),
    ("largest, moods", 1, MAIN[:2]),
    ("four", 0, FURTHER[1:]),
    *((pool, seed, (SHORT,)) for pool, seed in COMPARED),
    *((pool, 3, (EXPERTS, *MAIN[:2])) for pool in ("rank 4", "rank 64", "other four")),
    ("eight", 3, MAIN[:2]),
    *(("four", seed, ("tsv-m, scale 0.7", DOGE)) for seed in (0, 2, *UNSEEN)),
    (ENCODER, 0, (BASE,)),
    *((ENCODER, seed, (EXPERTS, *MAIN[:4], "32 own")) for seed in (0, 1, 2)),
    *((ENCODER, seed, ("1 own", SHORT, FURTHER[0])) for seed in (0, 1)),
    (PUBLISHED_ENCODER, 0, (BASE,)),
    *(
        (PUBLISHED_ENCODER, seed, (EXPERTS, *MAIN[:4], *COUNTS, "120 own, 100 steps", DOGE))
        for seed in (0, 1, 2)
    ),
    *((PUBLISHED_ENCODER, seed, (SHORT, FURTHER[0])) for seed in (0, 1)),
    (ENCODER_DECODER, 0, (BASE,)),
    *((ENCODER_DECODER, seed, (EXPERTS, *MAIN[:4], "32 own")) for seed in (0, 1, 2)),
    *((ENCODER_DECODER, seed, (SHORT, FURTHER[0], VARIANTS[-1])) for seed in (0, 1)),
    *(
        (PUBLISHED_ENCODER, seed, tuple(name for name, cell in CELLS.items() if cell.calibrated))
        for seed in (0, 1, 2)
    ),
    *((PUBLISHED_ENCODER, seed, ISOTROPIC) for seed in (0, 1, 2)),
    *((PUBLISHED_ENCODER, seed, CHOSEN) for seed in (0, 1, 2)),
    *((ENCODER, seed, CHOSEN) for seed in (0, 1)),
    *(
        (OTHER_TASKS, seed, (EXPERTS, *MAIN[:4], *COUNTS, "120 own, 100 steps", DOGE))
        for seed in (0, 1)
    ),
    *((OTHER_TASKS, seed, (*WITHOUT_DATA, *CHOSEN)) for seed in (0, 1)),
)
