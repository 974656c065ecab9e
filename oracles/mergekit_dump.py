"""Merge with mergekit, in its own virtual environment: `python mergekit_dump.py DIRECTORY`.

Reads `cases.json`, a list of merges, and the state dicts that they name. Writes mergekit's result
of each to `expected-<number>.safetensors`. If mergekit raises, the file has no tensors and the
error as metadata. This file runs where fusion-core is not installed.

`case["uniform"]` is a file of random numbers for methods that draw them, with one tensor per expert
and tensor. They replace `torch.bernoulli` in mergekit, in the order of experts. Tensors in
`case.get("skipped", ())` are omitted.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch
from mergekit.merge_methods.api import merge_state_dicts
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable


def main(directory: Path) -> None:
    """Run every case."""
    for number, case in enumerate(json.loads((directory / "cases.json").read_text())):
        names = ["base"] * case["has_base"] + case["experts"]
        states = {
            name: load_file(directory / case["inputs"] / f"{name}.safetensors") for name in names
        }
        for state in states.values():
            for skipped in case.get("skipped", ()):
                state.pop(skipped, None)
        merged, error = {}, ""
        try:
            with patch("torch.bernoulli", replace_bernoulli(directory, case)):
                merged = merge_with_mergekit(case, states)
        except ValueError as raised:  # what a method cannot do is a result, too
            error = str(raised)
        save_file(merged, directory / f"expected-{number}.safetensors", {"error": error})


def merge_with_mergekit(case: dict, states: dict) -> dict:
    """Return mergekit's result of a case."""
    last = states[[*states][-1]]
    merged = merge_state_dicts(
        states,
        case["method"],
        parameters=case["parameters"],
        base="base" if case["has_base"] else None,
        dtype=getattr(torch, case.get("computed_in", "float32")),
        out_dtype=next(iter(last.values())).dtype,
    )
    return {name: tensor.contiguous() for name, tensor in merged.items()}


def replace_bernoulli(directory: Path, case: dict) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a replacement of `torch.bernoulli` that identifies tensors by shape."""
    waiting = defaultdict(list)
    if case.get("uniform") is not None:
        numbers = load_file(directory / case["uniform"])
        for name, uniform in numbers.items():
            expert, tensor = name.split("/")
            if expert in case["experts"] and tensor not in case.get("skipped", ()):
                waiting[_shape(uniform)].append((case["experts"].index(expert), uniform))
    queues = {shape: sorted(pairs, key=lambda pair: pair[0]) for shape, pairs in waiting.items()}

    def bernoulli(chances: torch.Tensor) -> torch.Tensor:
        _, uniform = queues[_shape(chances)].pop(0)
        return (uniform.reshape(chances.shape) < chances).to(chances)

    return bernoulli


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return a shape without the leading 1 that some methods add to vectors."""
    return tuple(tensor.squeeze(0).shape) if tensor.numel() > 1 else tuple(tensor.shape)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
