"""Intended differences from mergekit 0.1.5: the results of both for the same models."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion_core import merge
from fusion_core.errors import RecipeError

PYTHON = Path(os.environ["FUSION_MERGEKIT"]) / "bin" / "python"
BASE = torch.linspace(-1, 1, 64)
MOVED = torch.linspace(0.5, 2, 64)
FAR = BASE + MOVED
TENSORS = {"same": BASE, "far": FAR, "minus far": -FAR, "small": 1e-5 * MOVED, "tiny": 1e-7 * MOVED}


@dataclass(frozen=True)
class Difference:
    """The same merge in both configurations, with both results; None for a refusal."""

    ours: dict[str, Any]
    theirs: str
    experts: tuple[str, ...]
    our_value: torch.Tensor | None
    their_value: torch.Tensor | None
    parameters: dict[str, Any] = field(default_factory=dict)
    has_base: bool = True


EQUAL = {"a": 1.0, "b": 1.0, "c": 1.0}
#: mergekit's cosine between two equal task vectors, and its ratio.
COSINE = float(TENSORS["small"].square().sum() / 1e-6)
RATIO = 2 * COSINE / (1 + COSINE)
DIFFERENCES = {
    "model stock: equal experts are one model, however near the base": Difference(
        {"name": "model-stock"},
        "model_stock",
        ("small", "small"),
        TENSORS["small"],
        RATIO * TENSORS["small"],
    ),
    "karcher: a tensor of small numbers has a mean": Difference(
        {"name": "karcher"},
        "karcher",
        ("tiny", "tiny"),
        TENSORS["tiny"],
        torch.zeros(64),
        has_base=False,
    ),
    "karcher: opposites have the mean of a straight line": Difference(
        {"name": "karcher"},
        "karcher",
        ("far", "minus far"),
        torch.zeros(64),
        FAR,
        has_base=False,
    ),
    "multi-slerp: what no expert changed is the base's": Difference(
        {"name": "multi-slerp"},
        "multislerp",
        ("same", "same", "same"),
        BASE,
        None,
        {"weight": EQUAL},
    ),
    "nuslerp: weights that cancel are an error": Difference(
        {"name": "nuslerp", "weights": [1.0, -1.0]},
        "nuslerp",
        ("far", "far"),
        None,
        FAR,
        {"weight": {"a": 1.0, "b": -1.0}},
    ),
    "nearswap: t is a bound, however small": Difference(
        {"name": "nearswap", "t": 1e-7},
        "nearswap",
        ("tiny",),
        TENSORS["tiny"].clamp(max=1e-7),
        0.1 * TENSORS["tiny"],
        {"t": 1e-7},
    ),
}


def _models(difference: Difference) -> dict[str, torch.Tensor]:
    """Return the models by name; small ones have a zero base."""
    base = torch.zeros(64) if {"small", "tiny"} & {*difference.experts} else BASE
    experts = dict(zip("abc", (TENSORS[expert] for expert in difference.experts), strict=False))
    return {"base": base, **experts}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run mergekit on all models."""
    root = tmp_path_factory.mktemp("differences")
    cases: list[dict[str, Any]] = []
    for number, difference in enumerate(DIFFERENCES.values()):
        (root / str(number)).mkdir()
        for name, tensor in _models(difference).items():
            save_file({"matrix": tensor.clone()}, root / str(number) / f"{name}.safetensors")
        cases.append(
            {
                "inputs": str(number),
                "experts": list("abc")[: len(difference.experts)],
                "has_base": difference.has_base,
                "method": difference.theirs,
                "computed_in": "float32",
                "parameters": difference.parameters,
            }
        )
    cases.append(_case_of_a_large_tensor(root))
    (root / "cases.json").write_text(json.dumps(cases))
    subprocess.run([PYTHON, Path(__file__).with_name("mergekit_dump.py"), root], check=True)
    return root


@pytest.mark.parametrize("name", DIFFERENCES)
def test_both_values_are_known(directory: Path, name: str) -> None:
    difference, number = DIFFERENCES[name], list(DIFFERENCES).index(name)
    theirs = load_file(directory / f"expected-{number}.safetensors").get("matrix")
    _check(theirs, difference.their_value)
    base, *experts = ({"matrix": model} for model in _models(difference).values())
    pool = {"models": dict(zip("abc", experts, strict=False))}
    if difference.has_base:
        pool["base"] = base
    if difference.our_value is None:
        with pytest.raises(RecipeError, match="cannot be normalised"):
            merge(difference.ours, pool)
    else:
        _check(merge(difference.ours, pool).tensor("matrix"), difference.our_value)


def _case_of_a_large_tensor(root: Path) -> dict[str, Any]:
    (root / "large").mkdir()
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(1100, 1000, generator=draw)
    expert = base + 0.1 * torch.randn(base.shape, generator=draw)
    for name, tensor in (("base", base), ("a", expert)):
        save_file({"matrix": tensor}, root / "large" / f"{name}.safetensors")
    return {
        "inputs": "large",
        "experts": ["a"],
        "has_base": True,
        "method": "arcee_fusion",
        "computed_in": "float32",
        "parameters": {},
    }


def test_quantiles_of_a_large_tensor_are_exact_and_theirs_a_samples(directory: Path) -> None:
    theirs = load_file(directory / f"expected-{len(DIFFERENCES)}.safetensors")["matrix"]
    base, expert = (
        load_file(directory / "large" / f"{name}.safetensors") for name in ("base", "a")
    )
    ours = merge("arcee-fusion", {"base": base, "models": {"a": expert}}).tensor("matrix")
    differing = int((ours - theirs).abs().gt(1e-6).sum())
    assert 0 < differing < 0.001 * ours.numel()


def _check(merged: torch.Tensor | None, expected: torch.Tensor | None) -> None:
    assert (merged is None) == (expected is None)
    if merged is not None:
        largest = float(expected.abs().max())
        torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-7 * largest)
