"""Our methods against mergekit 0.1.5, for those that both have: `nox -s oracle`.

mergekit computes in fp32 here, as we do, and rounds once; where a method is made of norms and
angles, in fp64, as we sum these (its own fp32 is off by up to 1e-5 there). Where several entries of
an expert share the magnitude at its trimming threshold, mergekit keeps an arbitrary choice of them
and we keep all: those entries are left out, and what is left is counted.
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
    #: whether mergekit's has a `weight`
    takes_weights: bool = True
    #: what mergekit computes in
    computed_in: str = "float32"
    #: tensors that are not compared, since they differ on purpose: `test_differences` has the like
    omitted: tuple[str, ...] = ()


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


def _by_angles(ours: dict[str, Any], theirs: str, *found: Any, **changes: Any) -> Method:
    return Method(ours, theirs, *found, computed_in="float64", **changes)


METHODS |= {
    **{
        f"slerp {t}": _by_angles(
            {"name": "slerp", "t": t}, "slerp", {"t": t}, experts=1, takes_weights=False
        )
        for t in (0.0, 0.3, 0.5, 1.0)
    },
    **{
        f"nuslerp, {mode}, {where}": _by_angles(
            {"name": "nuslerp", "mode": mode},
            "nuslerp",
            {"nuslerp_flatten": mode == "flat", "nuslerp_row_wise": mode == "column"},
            UNEQUAL,
            experts=2,
            has_base=where == "on a base",
        )
        for mode in ("flat", "row", "column")
        for where in ("on a base", "without a base")
    },
    "multi-slerp": _by_angles({"name": "multi-slerp"}, "multislerp"),
    "multi-slerp, weighted": _by_angles(
        {"name": "multi-slerp"}, "multislerp", weights=UNEQUAL, experts=5
    ),
    "multi-slerp without a base": _by_angles(
        {"name": "multi-slerp"}, "multislerp", weights=UNEQUAL, has_base=False
    ),
    **{
        f"karcher of {count}": _by_angles(
            {"name": "karcher"}, "karcher", experts=count, has_base=False, takes_weights=False
        )
        for count in (3, 5)
    },
    "karcher, two steps": _by_angles(
        {"name": "karcher", "iterations": 2, "tolerance": 1e-3},
        "karcher",
        {"max_iter": 2, "tol": 1e-3},
        has_base=False,
        takes_weights=False,
    ),
    **{
        f"model stock of {count}": _by_angles(
            {"name": "model-stock"},
            "model_stock",
            experts=count,
            takes_weights=False,
            omitted=("one", "scalar"),
        )
        for count in (2, 3, 5)
    },
    **{
        f"nearswap {t}": Method(
            {"name": "nearswap", "t": t}, "nearswap", {"t": t}, experts=1, takes_weights=False
        )
        for t in (0.0001, 0.001, 0.1)
    },
    "arcee fusion": Method(
        {"name": "arcee-fusion"}, "arcee_fusion", experts=1, takes_weights=False
    ),
    "passthrough": Method(
        {"name": "passthrough"}, "passthrough", experts=1, has_base=False, takes_weights=False
    ),
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
                "computed_in": method.computed_in,
                "parameters": {
                    **({"weight": weights} if method.takes_weights else {}),
                    **method.parameters,
                },
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
        if key in method.omitted:
            continue
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
