"""Our methods against mergekit 0.1.5, for methods that both have: `nox -s oracle`.

mergekit computes in fp32 here, as we do, and rounds once. For methods of norms, angles and
divergences it computes in fp64, as we sum these; its fp32 is off by 1e-5 or more. If several
entries of an expert have the magnitude of its trimming threshold, mergekit keeps an arbitrary
choice of them and we keep all. These entries are omitted, and the remaining ones are counted.
mergekit's random methods get our random numbers instead of torch's.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion_core import run_fusion
from fusion_core.weights.merging.counters import counter_uniform

if TYPE_CHECKING:
    from collections.abc import Callable

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
    """One merge, in our configuration and in mergekit's."""

    ours: dict[str, Any]
    theirs: str
    parameters: dict[str, Any] = field(default_factory=dict)
    weights: tuple[float, ...] = (1.0,) * 5
    density: float = 1.0
    experts: int = 3
    has_base: bool = True
    #: whether mergekit's method has a `weight`
    takes_weights: bool = True
    #: the dtype in which mergekit computes
    computed_in: str = "float32"
    #: marks entries of task vectors (experts, n) where both choose differently among equals
    unclear: Callable[[torch.Tensor], torch.Tensor] | None = None
    #: tensors on which mergekit fails or differs; see `test_mergekit_differences`
    skipped: tuple[str, ...] = ()
    #: our class whose random numbers mergekit gets
    random: str | None = None
    #: dtypes of the comparison
    dtypes: tuple[str, ...] = tuple(DTYPES)


def _ties(density: float, **changes: Any) -> Method:
    scale, normalize = changes.pop("scale", 1.0), changes.pop("normalize", True)
    rescale = changes.pop("rescale", "none")
    ours = {"name": "ties", "scope": "tensor", "zero_sign": "positive", "density": density}
    return Method(
        {**ours, "scale": scale, "normalize": normalize, "rescale": rescale},
        "ties",
        {
            "lambda": scale,
            "normalize": normalize,
            "density": density,
            "rescale": rescale == "l1",
        },
        density=density,
        **changes,
    )


UNEQUAL = (0.5, 2.0, 0.3, 1.0, 1.5)
#: If entries have the magnitude of a threshold, the sum of what is kept differs, and so does the
#: factor of all entries. That is frequent in half precision, and in large tensors.
RESCALED: dict[str, Any] = {
    "computed_in": "float64",
    "dtypes": ("fp32",),
    "skipped": ("one", "scalar", "large"),
}
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
    "ties, rescaled": _ties(0.3, rescale="l1", weights=UNEQUAL, **RESCALED),
}


def _by_angles(ours: dict[str, Any], theirs: str, *parameters: Any, **changes: Any) -> Method:
    return Method(ours, theirs, *parameters, computed_in="float64", **changes)


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
            skipped=("one", "scalar"),
        )
        for count in (2, 3, 5)
    },
    "model stock of filters": _by_angles(
        {"name": "model-stock", "scope": "row"},
        "model_stock",
        {"filter_wise": True},
        takes_weights=False,
        skipped=("one", "scalar", "convolution"),
    ),
    "multi-slerp, not divided": _by_angles(
        {"name": "multi-slerp", "normalize": False},
        "multislerp",
        {"normalize_weights": False},
        UNEQUAL,
    ),
    **{
        f"nearswap {t}": Method(
            {"name": "nearswap", "t": t}, "nearswap", {"t": t}, experts=1, takes_weights=False
        )
        for t in (0.0001, 0.001, 0.1)
    },
    "arcee fusion": Method(
        {"name": "arcee-fusion"},
        "arcee_fusion",
        computed_in="float64",  # in fp32 rounding decides which entries it selects
        experts=1,
        takes_weights=False,
    ),
    "passthrough": Method(
        {"name": "passthrough", "model": "a"},
        "passthrough",
        experts=1,
        has_base=False,
        takes_weights=False,
    ),
}
# --- the sparse methods of fusion-ties ----------------------------------------------------------


def _sparse(name: str, theirs: str, **changes: Any) -> Method:
    """Return a method that drops entries, with the options of both."""
    names = ("weights", "experts", "skipped", "random", "unclear", "dtypes", "computed_in")
    fields = {key: changes.pop(key) for key in names if key in changes}
    ours = {"name": name, "scale": 1.0, **changes}
    shared = {"density", "gamma", "epsilon", "normalize"}
    parameters = {key: value for key, value in ours.items() if key in shared}
    parameters |= {"rescale": ours.get("rescale") == "l1", "lambda": ours["scale"]}
    if ours.get("rescale") == "paper":
        parameters |= {"rescale": False, "lambda": ours["scale"] / ours["density"]}
    return Method(ours, theirs, parameters, **fields)


def _band_edges(deltas: torch.Tensor, density: float, gamma: float) -> torch.Tensor:
    """Mark entries that tie an edge of an expert's band, if the band keeps only some."""
    count = deltas.shape[1]
    count_kept = int(density * count)
    dropped = min(int(gamma * count), count - count_kept)
    tied = torch.zeros(count, dtype=torch.bool)
    for row in deltas.abs():
        edges = row.sort(descending=True).values[[dropped, dropped + count_kept - 1]]
        inside = (row >= edges[1]) & (row <= edges[0])
        if int(inside.sum()) > count_kept:
            tied |= (row == edges[0]) | (row == edges[1])
    return tied


def _variance_edge(deltas: torch.Tensor, density: float) -> torch.Tensor:
    """Mark positions whose variance is the last selected one, up to fp32 rounding."""
    variances = deltas.double().var(dim=0, unbiased=False)
    count_kept = int(density * int(variances.count_nonzero()))
    edge = variances.sort(descending=True).values[count_kept - 1]
    return (variances - edge).abs() <= 1e-5 * edge


def _breadcrumbs(theirs: str, density: float, gamma: float, **changes: Any) -> Method:
    edges = partial(_band_edges, density=density, gamma=gamma)
    options = {"density": density, "gamma": gamma, "skipped": ONES, "unclear": edges, **changes}
    return _sparse("breadcrumbs", theirs, **options)


#: Tensors of which mergekit's breadcrumbs keep nothing, whose squares are too small for its sce,
#: and on which its della fails.
ONES = ("one", "scalar")
DARE = {"random": "Drop", "rescale": "l1"}
#: In mergekit, equal magnitudes, frequent in half precision, have arbitrary ranks, and tensors of
#: more than two dimensions are ranked along the second.
DELLA = {
    "random": "MagPrune",
    "rescale": "l1",
    "epsilon": 0.2,
    "density": 0.4,
    "skipped": (*ONES, "convolution"),
    "dtypes": ("fp32",),
}
METHODS |= {
    "dare, all kept": _sparse("dare", "dare_linear", density=1.0, **DARE, weights=UNEQUAL),
    "dare": _sparse("dare", "dare_linear", density=0.3, **DARE, weights=UNEQUAL, experts=5),
    "dare, as the paper": _sparse(
        "dare", "dare_linear", density=0.3, random="Drop", rescale="paper"
    ),
    "dare, not rescaled": _sparse(
        "dare", "dare_linear", density=0.3, random="Drop", rescale="none"
    ),
    "dare, mean": _sparse(
        "dare", "dare_linear", density=0.7, **DARE, normalize=True, weights=UNEQUAL
    ),
    "dare ties": _sparse("dare", "dare_ties", density=0.3, **DARE, elect="ties"),
    "dare ties, weighted mean": _sparse(
        "dare", "dare_ties", density=0.6, **DARE, elect="ties", normalize=True, weights=UNEQUAL
    ),
    "della, all kept": _sparse(
        "della", "della", **{**DELLA, "density": 1.0}, normalize=True, elect="ties"
    ),
    "della": _sparse("della", "della", **DELLA, normalize=True, elect="ties"),
    "della, scaled": _sparse(
        "della",
        "della",
        **{**DELLA, "scale": 0.7, "normalize": True, "elect": "ties"},
        weights=UNEQUAL,
        experts=5,
    ),
    "della linear": _sparse("della", "della_linear", **DELLA, normalize=False, elect="none"),
    "della, not rescaled": _sparse(
        "della", "della", **{**DELLA, "rescale": "none"}, normalize=True, elect="ties"
    ),
    "breadcrumbs, rescaled mean": _breadcrumbs(
        "breadcrumbs", 0.4, 0.05, weights=UNEQUAL, rescale="l1", normalize=True, **RESCALED
    ),
    "breadcrumbs ties, mean": _breadcrumbs(
        "breadcrumbs_ties", 0.4, 0.05, elect="ties", normalize=True
    ),
    "breadcrumbs": _breadcrumbs("breadcrumbs", 0.2, 0.05, weights=UNEQUAL, experts=5),
    "breadcrumbs, few at the top": _breadcrumbs("breadcrumbs", 0.9, 0.01),
    "breadcrumbs, less dropped": _breadcrumbs("breadcrumbs", 0.9, 0.3),
    "breadcrumbs ties": _breadcrumbs("breadcrumbs_ties", 0.5, 0.1, elect="ties", weights=UNEQUAL),
    "sce": Method({"name": "sce"}, "sce", skipped=ONES, takes_weights=False),
    "sce, five experts": Method(
        {"name": "sce"}, "sce", skipped=ONES, experts=5, takes_weights=False
    ),
    **{
        f"sce {density}": Method(
            {"name": "sce", "density": density},
            "sce",
            {"select_topk": density},
            unclear=partial(_variance_edge, density=density),
            skipped=ONES,
            takes_weights=False,
            dtypes=("fp32",),  # in half precision many variances are equal
        )
        for density in (0.2, 0.7)
    },
}

METHODS |= {
    "ram": Method({"name": "ram"}, "ram", takes_weights=False),
    **{
        f"ram, changes above {epsilon}": Method(
            {"name": "ram", "epsilon": epsilon},
            "ram",
            {"epsilon": epsilon},
            experts=experts,
            takes_weights=False,
        )
        for epsilon, experts in ((0.001, 5), (0.003, 3), (0.1, 3))
    },
    **{
        f"ram+, {r}, {alpha}": Method(
            {"name": "ram", "epsilon": 0.003, "r": r, "alpha": alpha, "scope": "tensor"},
            "ramplus_tl",
            {"epsilon": 0.003, "r": r, "alpha": alpha},
            takes_weights=False,
        )
        for r, alpha in ((0.1, 0.2), (0.4, 3.0))
    },
}

CASES = [(m, d, seed) for m in METHODS for d in METHODS[m].dtypes for seed in SEEDS]


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
    """Write all inputs, and run mergekit on them."""
    root = tmp_path_factory.mktemp("oracle")
    for dtype, seed in {(d, s) for _, d, s in CASES}:
        (root / f"{dtype}-{seed}").mkdir()
        for model, state in _states(DTYPES[dtype], seed).items():
            save_file(state, root / f"{dtype}-{seed}" / f"{model}.safetensors")
    for drawn in {method.random for method in METHODS.values() if method.random}:
        save_file(_uniform(drawn), root / f"{drawn}.safetensors")
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
                "skipped": method.skipped,
                "uniform": method.random and f"{method.random}.safetensors",
            }
        )
    _run_mergekit(root, cases)
    return root


def _run_mergekit(root: Path, cases: list[dict[str, Any]]) -> None:
    (root / "cases.json").write_text(json.dumps(cases))
    subprocess.run([PYTHON, Path(__file__).with_name("mergekit_dump.py"), root], check=True)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: "-".join(map(str, CASES[n])))
def test_a_merge_is_mergekits(directory: Path, tmp_path: Path, number: int) -> None:
    name, dtype, seed = CASES[number]
    method = METHODS[name]
    inputs = directory / f"{dtype}-{seed}"
    experts = {
        expert: str(inputs / f"{expert}.safetensors") for expert in EXPERTS[: method.experts]
    }
    pool = {"name": "checkpoints", "models": experts}
    if method.has_base:
        pool["base"] = str(inputs / "base.safetensors")
    algorithm = dict(method.ours)
    if method.weights != (1.0,) * 5:
        algorithm["weights"] = list(method.weights[: method.experts])
    run_fusion(algorithm=algorithm, model_pool=pool, output=tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    expected = load_file(directory / f"expected-{number}.safetensors")
    assert merged.keys() - expected.keys() == set(method.skipped)
    compared = 0
    for key, theirs in expected.items():
        assert (merged[key].dtype, merged[key].shape) == (theirs.dtype, theirs.shape)
        clear = ~_mark_ties(inputs, key, method)
        compared += int(clear.sum())
        _check_equal(merged[key].flatten()[clear], theirs.flatten()[clear])
    assert compared > 0.8 * sum(tensor.numel() for tensor in expected.values())


def _uniform(drawn: str) -> State:
    """Return the random numbers of one of our classes, by expert and tensor."""
    return {
        f"{expert}/{name}": counter_uniform(
            f"0\0{drawn}\0{expert}\0{name}", 0, torch.Size(shape).numel()
        ).reshape(shape)
        for expert in EXPERTS
        for name, shape in SHAPES.items()
    }


def _check_equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Compare to one unit in the last place of the dtype; in fp32 to 1e-6 of the largest."""
    if theirs.dtype is torch.float32:
        largest = float(theirs.abs().max()) if theirs.numel() else 0.0
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7 * largest)
    else:
        torch.testing.assert_close(ours, theirs, rtol=torch.finfo(theirs.dtype).eps, atol=1e-7)


def _mark_ties(inputs: Path, key: str, method: Method) -> torch.Tensor:
    """Mark entries that tie an expert's threshold, if only some of them are kept."""
    names = EXPERTS[: method.experts]
    base, *experts = (load_file(inputs / f"{name}.safetensors")[key] for name in ("base", *names))
    tied = torch.zeros(base.numel(), dtype=torch.bool)
    if method.unclear is not None:
        deltas = [(expert.float() - base.float()).flatten() for expert in experts]
        return method.unclear(torch.stack(deltas))
    if method.density == 1:
        return tied
    count_kept = max(1, int(method.density * base.numel()))
    for expert in experts:
        magnitudes = (expert.float() - base.float()).abs().flatten()
        threshold = magnitudes.sort(descending=True).values[count_kept - 1]
        if int((magnitudes >= threshold).sum()) > count_kept:
            tied |= magnitudes == threshold
    return tied


#: Intended differences: mergekit's method and parameters; ours; task vectors on a zero base;
#: mergekit's result; our result.
DIFFERENCES: list[tuple[str, dict[str, Any], dict[str, Any], list[list[float]], Any, Any]] = [
    # Squares that sum to less than 1e-6 weigh nothing: (1 + 3) / 2. Ours: (1 * 1 + 9 * 3) / 10.
    ("sce", {}, {"name": "sce"}, [[1e-5], [3e-5]], [2e-5], [2.8e-5]),
    # floor(0.5 * 1) = 0 entries are kept. Ours: at least one.
    ("breadcrumbs", {"density": 0.5}, {"name": "breadcrumbs", "density": 0.5}, [[1.0]], [0], [1]),
    # floor(0.4 * 2) = 0 positions are selected. Ours: at least the one of largest variance.
    (
        "sce",
        {"select_topk": 0.4},
        {"name": "sce", "density": 0.4},
        [[1.0, 8.0], [1.0, 2.0]],
        [0, 0],
        [0, 130 / 17],  # (64 * 8 + 4 * 2) / 68
    ),
    # Sums of magnitudes below 1e-7 are not restored. Of six entries five are kept.
    (
        "dare_linear",
        {"density": 0.5},
        {"name": "dare", "density": 0.5, "rescale": "l1"},
        [[1e-9] * 6],
        [1e-9] * 5 + [0],
        [1.2e-9] * 5 + [0],
    ),
]


def test_where_we_differ_on_purpose(tmp_path: Path) -> None:
    cases = []
    numbers = {"e0/w": counter_uniform("0\0Drop\0e0\0w", 0, 6)}
    save_file(numbers, tmp_path / "Drop.safetensors")
    for number, (theirs, parameters, _, rows, _, _) in enumerate(DIFFERENCES):
        inputs = tmp_path / str(number)
        inputs.mkdir()
        tensors = [torch.zeros(len(rows[0])), *map(torch.tensor, rows)]
        names = ["base", *(f"e{n}" for n in range(len(rows)))]
        for name, tensor in zip(names, tensors, strict=True):
            save_file({"w": tensor}, inputs / f"{name}.safetensors")
        weighted = {} if theirs == "sce" else {"weight": 1.0}
        cases.append(
            {
                "inputs": str(number),
                "experts": names[1:],
                "has_base": True,
                "method": theirs,
                "parameters": {**weighted, **parameters},
                "skipped": [],
                "uniform": "Drop.safetensors" if theirs == "dare_linear" else None,
            }
        )
    _run_mergekit(tmp_path, cases)
    for number, (_, _, ours, rows, their_result, our_result) in enumerate(DIFFERENCES):
        experts = {f"e{n}": {"w": torch.tensor(row)} for n, row in enumerate(rows)}
        pool = {"base": {"w": torch.zeros(len(rows[0]))}, "models": experts}
        scale = {} if ours["name"] == "sce" else {"scale": 1.0}
        merged = run_fusion(algorithm={**ours, **scale}, model_pool=pool).weights.tensor("w")
        expected = load_file(tmp_path / f"expected-{number}.safetensors")["w"]
        torch.testing.assert_close(expected, torch.tensor(their_result).float(), rtol=1e-6, atol=0)
        torch.testing.assert_close(merged, torch.tensor(our_result).float(), rtol=1e-6, atol=0)
