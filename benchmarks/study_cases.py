"""The cases of the study: learned coefficients, examples, and seeds of experts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from study_defaults import VARIANTS

from pools_mini.plugin import TASKS

#: Seeds for choosing options, and seeds for reporting.
LOOKED_AT, REPORTED = (0, 1), (3, 4, 5)


@dataclass(frozen=True)
class Case:
    """One way to adapt; by default that of the preset `strong`."""

    group: str
    options: dict[str, Any] = field(default_factory=dict)
    #: apply `orthogonalise` first, and start from the sum
    orthogonal: bool = False
    #: learn all weights instead of coefficients
    rival: bool = False
    #: measure the experts instead of a merge
    alone: bool = False
    #: standard deviation of the noise on the images to adapt on
    noise: float = 0.0
    #: default seeds of experts
    seeds: tuple[int, ...] = REPORTED

    def but(self, group: str, *, noise: float = 0.0, **options: Any) -> Case:  # noqa: ANN401
        """Return the case with changed options, in a different group."""
        seeds = REPORTED if group in {"methods", "few"} else REPORTED[:2]
        merged_options = self.options | options
        return replace(self, group=group, options=merged_options, noise=noise, seeds=seeds)


def _case(what: str, *, orthogonal: bool = False, **options: Any) -> Case:  # noqa: ANN401
    """Return the case of a granularity or of "all weights"."""
    rival = what == "all weights"
    learner = {"lr": 0.001} if rival else {"granularity": what}
    start = {"init": 1.0} if orthogonal else {}
    merged_options = {"preset": "strong", "shrinkage": 0, **learner, **start, **options}
    return Case("methods", merged_options, orthogonal=orthogonal, rival=rival)


SHRINKAGE = 30
FINER = ("row", "column", "row+column", "rank")
LAYER = {"lr": 0.02, "temperature": 1}
PIPELINE = _case("row+column", orthogonal=True)
BOTH = _case("all weights", orthogonal=True)
COARSE = _case("layer", orthogonal=True, **LAYER)

METHODS: dict[str, Case] = {
    "layer, entropy": Case("methods"),
    "layer, teacher": _case("layer", **LAYER),
    **{what: _case(what) for what in FINER},
    "all weights": _case("all weights"),
    "orthogonalise": _case("layer", orthogonal=True, steps=0),
    "orthogonalise, layer, teacher": COARSE,
    **{f"orthogonalise, {what}": _case(what, orthogonal=True) for what in FINER},
    "orthogonalise, all weights": BOTH,
}
#: Cases that also adapt on other splits.
_SPLIT = (
    *("layer, entropy", "layer, teacher", "row+column", "all weights"),
    *("orthogonalise, row+column", "orthogonalise, all weights"),
)
_FEW = {
    "layer": COARSE,
    "row+column": PIPELINE,
    "rank": METHODS["orthogonalise, rank"],
    "all weights": BOTH,
}
#: The pipeline `strong`, whose coefficients deviate the less, the fewer examples there are.
STRONG = _case("row+column", orthogonal=True, shrinkage=SHRINKAGE)
#: Numbers of examples per task; None: all 300.
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, None)
_THREE = {"layer": COARSE, "row+column": PIPELINE, "all weights": BOTH}


def _choice() -> dict[str, Case]:
    """Return the cases among which the preset and the pipeline were chosen."""
    cases: dict[str, Case] = {}
    for orthogonal in (False, True):
        before = "orthogonalise, " * orthogonal
        for what, rates in {
            "layer": (0.02, 0.05),
            **dict.fromkeys(("column", "row+column"), (0.1, 0.2)),
            "all weights": (0.0003, 0.001),
        }.items():
            for lr, temperature in zip(rates, (1, 4), strict=True):
                name = f"choice: {before}{what}, lr {lr}, T {temperature}"
                cases[name] = _case(what, orthogonal=orthogonal, lr=lr, temperature=temperature)
    for label, options in {
        "lr 0.4": {"lr": 0.4},
        "T 8": {"temperature": 8},
        "a cosine, lr 0.3": {"schedule": "cosine", "lr": 0.3},
        "init 1.5": {"init": 1.5},
    }.items():
        cases[f"choice: the pipeline, but {label}"] = PIPELINE.but("choice", **options)
    return {name: replace(case, group="choice", seeds=LOOKED_AT) for name, case in cases.items()}


_EVERY = (*LOOKED_AT, *REPORTED)
CASES: dict[str, Case] = {
    "experts": Case("methods", alone=True, seeds=_EVERY),
    "experts, holdout": Case("methods", {"adapt_split": "holdout"}, alone=True),
    **METHODS,
    **{
        f"{name}, {split}": METHODS[name].but("methods", adapt_split=split)
        for split in ("test", "holdout")
        for name in _SPLIT
    },
    **{
        f"{count} examples: {name}": case.but("examples", examples=count)
        for count in (4, 16, 64, 256)
        for name, case in _FEW.items()
    },
    **{f"{count or 300} examples: strong": STRONG.but("few", examples=count) for count in COUNTS},
    **{
        f"{count} examples: {name}": _FEW[name].but("few", examples=count)
        for count in (1, 8)
        for name in ("layer", "row+column")
    },
    **{
        f"{count} tasks: {name}": case.but("teachers", tasks=list(TASKS[:count]))
        for count in (2, 4)
        for name, case in _THREE.items()
    },
    **{
        f"noise {noise}: {name}": case.but("noise", noise=noise)
        for noise in (0.5,)
        for name, case in _THREE.items()
    },
    **{
        f"{steps} steps: {name}": case.but("steps", steps=steps)
        for steps in (10, 30)
        for name, case in _THREE.items()
    },
    **_choice(),
    **{
        f"defaults: {name}": Case("defaults", options, name.startswith("spectral"), seeds=())
        for name, options in VARIANTS.items()
    },
}
