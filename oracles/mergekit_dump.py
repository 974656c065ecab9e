"""Merge with mergekit, in a virtual environment of its own: `python mergekit_dump.py DIRECTORY`.

Reads `cases.json`, a list of merges, and the state dicts that they name; writes what mergekit makes
of each to `expected-<number>.safetensors`: no tensors, and the error, where it raises one. This
file runs where fusion-core is not installed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from mergekit.merge_methods.api import merge_state_dicts
from safetensors.torch import load_file, save_file


def main(directory: Path) -> None:
    """Run every case."""
    for number, case in enumerate(json.loads((directory / "cases.json").read_text())):
        names = ["base"] * case["has_base"] + case["experts"]
        states = {
            name: load_file(directory / case["inputs"] / f"{name}.safetensors") for name in names
        }
        found, error = {}, ""
        try:
            merged = merge_state_dicts(
                states,
                case["method"],
                parameters=case["parameters"],
                base="base" if case["has_base"] else None,
                dtype=getattr(torch, case["computed_in"]),
                out_dtype=states[names[-1]]["matrix"].dtype,
            )
            found = {name: tensor.contiguous() for name, tensor in merged.items()}
        except ValueError as raised:  # what a method cannot do is a result, too
            error = str(raised)
        save_file(found, directory / f"expected-{number}.safetensors", {"error": error})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
