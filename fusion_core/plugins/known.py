"""Which of our distributions brings a name: said to those who ask for it and have not got it."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A distribution's components, by kind: names and aliases.
BROUGHT_BY: dict[str, dict[str, tuple[str, ...]]] = {
    "fusion-adamerging": {
        "algorithm": ("adamerging", "adarank", "surgery", "symerge"),
        "pipeline": ("strong",),
    },
    "fusion-dask": {"executor": ("dask",)},
    "fusion-linear": {
        "algorithm": (
            "arcee-fusion",
            "depth-scale",
            "karcher",
            "lines",
            "metagpt",
            "model-stock",
            "multi-slerp",
            "nearswap",
            "normalise",
            "nuslerp",
            "passthrough",
            "rescale-norm",
            "simple-average",
            "slerp",
            "stack",
            "task-arithmetic",
            "weighted-average",
        )
    },
    "fusion-regmean": {
        "algorithm": ("cat", "featcal", "fisher", "lot", "regmean", "regmean-plus-plus")
    },
    "fusion-report": {"command": ("compare", "diagnose", "report")},
    "fusion-spectral": {
        "algorithm": (
            "ace",
            "cart",
            "core-space",
            "doge",
            "iso-c",
            "iso-cts",
            "knots",
            "orthogonalise",
            "orthomerge",
            "star",
            "svc",
            "truncate",
            "tsv-m",
            "wudi",
        )
    },
    "fusion-ties": {
        "algorithm": (
            *("band", "drop", "elect", "magprune", "trim"),
            *("breadcrumbs", "consensus", "dare", "della", "emr", "magmax", "pcb", "sce", "ties"),
        )
    },
    "fusion-sweep": {"command": ("sweep", "runs")},
    "fusion-testing": {"command": ("new-plugin",)},
    "pools-clip": {
        "model pool": ("clip", "clip-vit-b16", "clip-vit-b32", "clip-vit-l14"),
        "task pool": ("clip-classification", "clip-vit-b16", "clip-vit-b32", "clip-vit-l14"),
    },
    "pools-lm": {
        "command": ("smoke",),
        "model pool": (
            *("causal-lm", "flan-t5-glue", "gpt2-glue", "lm-mini"),
            *("sentence-encoder", "seq2seq-lm", "sequence-classification"),
        ),
        "task pool": (
            *("lm-choice", "lm-eval", "lm-generate", "lm-mini", "lm-perplexity", "lm-tasks"),
            *("flan-t5-glue", "gpt2-glue", "sentence-classification", "sts"),
        ),
    },
    "pools-mini": {"model pool": ("mini8",), "task pool": ("mini8",)},
}


def home_of(kinds: Iterable[str], name: str) -> str | None:
    """Return the distribution of ours that brings a component of this name or full name."""
    for distribution, brought in BROUGHT_BY.items():
        names = chain.from_iterable(brought.get(kind, ()) for kind in kinds)
        if any(name in {own, f"{distribution}/{own}"} for own in names):
            return distribution
    return None
