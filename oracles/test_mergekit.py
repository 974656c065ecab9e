"""Our methods against mergekit 0.1.5, for those that both have: `nox -s oracle`.

mergekit computes in fp32 here, as we do, and rounds once. Where several entries of an expert share
the magnitude at its trimming threshold, mergekit keeps an arbitrary choice of them and we keep all:
those entries are left out, and what is left is counted.
"""

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

from fusion_core import run_fusion

PYTHON = Path(os.environ["FUSION_MERGEKIT"]) / "bin" / "python"
SHAPES = {
    "matrix": (64, 96),
    "wide": (7, 3001),
    "vector": (513,),
    "convolution": (16, 8, 3, 3),
    "one": (1,),
    "scalar": (),
    "large": (600, 1000),  # more than one block
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SEEDS = range(3)
EXPERTS = ("a", "b", "c", "d", "e")
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Method:
    """One way to merge, in the words of both."""

    ours: dict[str, Any]
    theirs: str
    parameters: dict[str, Any] = field(default_factory=dict)
    weights: tuple[float, ...] = (1.0,) * 5
    density: float = 1.0
    experts: int = 3
    has_base: bool = True


def _ties(density: float, **changes: Any) -> Method:
    scale, normalize = changes.pop("scale", 1.0), changes.pop("normalize", True)
    ours = {"name": "ties", "scope": "tensor", "zero_sign": "positive", "density": density}
    return Method(
        {**ours, "scale": scale, "normalize": normalize},
        "ties",
        {"lambda": scale, "normalize": normalize, "density": density},
        density=density,
        **changes,
    )


UNEQUAL = (0.5, 2.0, 0.3, 1.0, 1.5)
METHODS = {
    "mean": Method({"name": "simple-average"}, "linear", has_base=False),
    "mean of five": Method({"name": "simple-average"}, "linear", experts=5, has_base=False),
    "weighted mean": Method(
        {"name": "weighted-average"}, "linear", weights=UNEQUAL, has_base=False
    ),
    "weighted sum": Method(
        {"name": "weighted-average", "normalize": False},
        "linear",
        {"normalize": False},
        UNEQUAL,
        has_base=False,
    ),
    "task arithmetic": Method(
        {"name": "task-arithmetic", "scale": 0.3}, "task_arithmetic", {"lambda": 0.3}
    ),
    "task arithmetic, weighted": Method(
        {"name": "task-arithmetic", "scale": 1.0}, "task_arithmetic", weights=UNEQUAL, experts=5
    ),
    **{f"ties {density}": _ties(density) for density in (0.05, 0.2, 0.5, 0.9, 1.0)},
    "ties, weighted": _ties(0.3, weights=UNEQUAL),
    "ties, one expert": _ties(0.2, experts=1),
    "ties, five experts": _ties(0.2, experts=5),
    "ties, sum": _ties(0.2, normalize=False, scale=0.3),
    "ties, scaled": _ties(0.4, scale=1.7),
}
CASES = [(m, d, seed) for m in METHODS for d in DTYPES for seed in SEEDS]


def _states(dtype: torch.dtype, seed: int) -> dict[str, State]:
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: tuple[int, ...], deviation: float) -> torch.Tensor:
        return deviation * torch.randn(shape, generator=generator)

    base = {name: normal(shape, 0.02) for name, shape in SHAPES.items()}
    experts = {
        expert: {name: value + normal(SHAPES[name], 0.002) for name, value in base.items()}
        for expert in EXPERTS
    }
    return {
        model: {name: value.to(dtype) for name, value in state.items()}
        for model, state in {"base": base, **experts}.items()
    }


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write all inputs, and have mergekit merge them."""
    root = tmp_path_factory.mktemp("oracle")
    for dtype, seed in {(d, s) for _, d, s in CASES}:
        (root / f"{dtype}-{seed}").mkdir()
        for model, state in _states(DTYPES[dtype], seed).items():
            save_file(state, root / f"{dtype}-{seed}" / f"{model}.safetensors")
    cases = []
    for name, dtype, seed in CASES:
        method = METHODS[name]
        experts = EXPERTS[: method.experts]
        weights = dict(zip(experts, method.weights, strict=False))
        cases.append(
            {
                "inputs": f"{dtype}-{seed}",
                "experts": experts,
                "has_base": method.has_base,
                "method": method.theirs,
                "parameters": {"weight": weights, **method.parameters},
            }
        )
    (root / "cases.json").write_text(json.dumps(cases))
    subprocess.run([PYTHON, Path(__file__).with_name("mergekit_dump.py"), root], check=True)
    return root


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: "-".join(map(str, CASES[n])))
def test_a_merge_is_mergekits(directory: Path, tmp_path: Path, number: int) -> None:
    name, dtype, seed = CASES[number]
    method = METHODS[name]
    inputs = directory / f"{dtype}-{seed}"
    experts = {each: str(inputs / f"{each}.safetensors") for each in EXPERTS[: method.experts]}
    pool = {"name": "checkpoints", "models": experts}
    if method.has_base:
        pool["base"] = str(inputs / "base.safetensors")
    algorithm = dict(method.ours)
    if method.weights != (1.0,) * 5:
        algorithm["weights"] = list(method.weights[: method.experts])
    run_fusion(algorithm=algorithm, model_pool=pool, output=tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    expected = load_file(directory / f"expected-{number}.safetensors")
    assert merged.keys() == expected.keys()
    compared = 0
    for key, theirs in expected.items():
        assert (merged[key].dtype, merged[key].shape) == (theirs.dtype, theirs.shape)
        clear = ~_tied(inputs, key, method)
        compared += int(clear.sum())
        _check_equal(merged[key].flatten()[clear], theirs.flatten()[clear])
    assert compared > 0.8 * sum(each.numel() for each in expected.values())


def _check_equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Agree to one unit in the last place of the stored dtype; in fp32 to 1e-6 of the largest."""
    if theirs.dtype is torch.float32:
        largest = float(theirs.abs().max()) if theirs.numel() else 0.0
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7 * largest)
    else:
        torch.testing.assert_close(ours, theirs, rtol=torch.finfo(theirs.dtype).eps, atol=1e-7)


def _tied(inputs: Path, key: str, method: Method) -> torch.Tensor:
    """Mark the entries that tie an expert's threshold, where not all that tie are kept."""
    names = EXPERTS[: method.experts]
    base, *experts = (load_file(inputs / f"{each}.safetensors")[key] for each in ("base", *names))
    tied = torch.zeros(base.numel(), dtype=torch.bool)
    if method.density == 1:
        return tied
    kept = max(1, int(method.density * base.numel()))
    for expert in experts:
        magnitudes = (expert.float() - base.float()).abs().flatten()
        threshold = magnitudes.sort(descending=True).values[kept - 1]
        if int((magnitudes >= threshold).sum()) > kept:
            tied |= magnitudes == threshold
    return tied
