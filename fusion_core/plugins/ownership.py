"""The project's own distributions by component, to name the one that a user lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The components of each distribution by kind: names and aliases.
# fmt: off
COMPONENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "formats-dcp": {"format": ("dcp", "dcp-safetensors")},
    "formats-quantised": {
        "format": ("awq", "bitsandbytes", "compressed-tensors", "fp8", "gguf", "gptq", "mxfp4"),
        "output": ("quantise",),
    },
    "fusion-adamerging": {
        "algorithm": ("adamerging", "adarank", "surgery", "symerge"),
        "pipeline": ("strong",),
    },
    "fusion-average": {
        "algorithm": ("greedy-soup", "run-average"),
        "command": ("average",),
    },
    "fusion-dask": {"executor": ("dask",)},
    "fusion-linear": {
        "algorithm": (
            "arcee-fusion", "depth-scale", "karcher", "lines", "metagpt", "model-stock",
            "multi-slerp", "nearswap", "normalise", "nuslerp", "passthrough", "rescale-norm",
            "simple-average", "slerp", "stack", "task-arithmetic", "weighted-average",
        ),
    },
    "fusion-lora": {"command": ("extract-lora",), "format": ("lora",), "output": ("adapter",)},
    "fusion-moe": {"algorithm": ("moe", "smile", "wemoe")},
    "fusion-publish": {"command": ("card", "lock", "push", "reproduce", "sign", "verify")},
    "fusion-regmean": {
        "algorithm": ("cat", "featcal", "fisher", "lot", "regmean", "regmean-plus-plus"),
    },
    "fusion-report": {"command": ("compare", "diagnose", "report")},
    "fusion-spectral": {
        "algorithm": (
            "ace", "cart", "core-space", "disentangle", "doge", "iso-c", "iso-cts", "isotropise",
            "knots", "orthogonalise", "orthomerge", "project", "resmerge", "star", "svc",
            "truncate", "tsv-m", "wudi",
        ),
        "pipeline": ("opcm",),
    },
    "fusion-sweep": {"command": ("sweep", "runs")},
    "fusion-testing": {"command": ("new-plugin",)},
    "fusion-ties": {
        "algorithm": (
            "band", "breadcrumbs", "consensus", "dare", "della", "drop", "elect", "emr", "magmax",
            "magprune", "pcb", "ram", "sce", "ties", "trim",
        ),
    },
    "pools-checkpoints": {"model pool": ("checkpoints",)},
    "fusion-tokenizer": {"command": ("transplant-tokenizer",)},
    "pools-clip": {
        "model pool": ("clip", "clip-vit-b16", "clip-vit-b32", "clip-vit-l14"),
        "task pool": ("clip-classification", "clip-vit-b16", "clip-vit-b32", "clip-vit-l14"),
    },
    "pools-lm": {
        "command": ("smoke",),
        "model pool": (
            "causal-lm", "flan-t5-glue", "gpt2-glue", "lm-mini", "sentence-encoder", "seq2seq-lm",
            "sequence-classification", "vision-language",
        ),
        "task pool": (
            "flan-t5-glue", "gpt2-glue", "lm-agreement", "lm-choice", "lm-eval", "lm-generate",
            "lm-mini", "lm-perplexity", "lm-tasks", "sentence-classification", "sts",
        ),
    },
    "pools-mini": {"model pool": ("mini8",), "task pool": ("mini8",)},
    "recipes-import": {"command": ("import",)},
}
# fmt: on


def distribution_of(kinds: Iterable[str], name: str) -> str | None:
    """Return our distribution that has a component of this name or qualified name, or None."""
    kinds = list(kinds)
    for distribution, components in COMPONENTS.items():
        names = [component for kind in kinds for component in components.get(kind, ())]
        if name in names or name in {f"{distribution}/{component}" for component in names}:
            return distribution
    return None
