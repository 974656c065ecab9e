"""Fractions that differ between experts: each expert is treated as with its own fraction alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion_core import merge
from fusion_core.errors import RecipeError

State = dict[str, torch.Tensor]
SHAPES = {"matrix": (40, 30), "vector": (17,), "convolution": (6, 5, 3, 3)}


@pytest.fixture
def models() -> dict[str, State]:
    """Return a base and three experts."""
    draw = torch.Generator().manual_seed(0)
    return {
        model: {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
        for model in ("base", "a", "b", "c")
    }


def sparse_vector(models: dict[str, State], stage: dict[str, Any], expert: str) -> State:
    """Return an expert after a transform of all experts."""
    experts = {name: state for name, state in models.items() if name != "base"}
    stages = [stage, {"name": "passthrough", "model": expert}]
    merged = merge(stages, {"base": models["base"], "models": experts})
    return {name: merged.tensor(name) for name in SHAPES}


CASES = [
    ({"name": "trim", "scope": "model"}, {"density": [0.1, 0.6, 1.0]}),
    ({"name": "trim", "scope": "tensor"}, {"density": [0.0, 0.6, 0.3]}),
    ({"name": "band"}, {"density": [0.5, 0.2, 1.0], "gamma": [0.1, 0.3, 0.2]}),
    ({"name": "band", "gamma": 0.2}, {"density": [0.0, 0.2, 0.3]}),
    ({"name": "drop"}, {"density": [0.0, 0.5, 1.0]}),
    ({"name": "drop", "rescale": "l1"}, {"density": [0.3, 0.5, 1.0]}),
    ({"name": "magprune"}, {"density": [0.3, 1.0, 0.6], "epsilon": [0.1, 0.2, 0.4]}),
    ({"name": "magprune", "density": 0.5, "rescale": "l1"}, {"epsilon": [0.1, 0.0, 0.4]}),
]


@pytest.mark.parametrize(("stage", "fractions"), CASES)
@pytest.mark.parametrize("form", [list, lambda values: dict(zip("abc", values, strict=True))])
def test_every_expert_has_its_own_fraction(
    models: dict[str, State], stage: dict[str, Any], fractions: dict[str, list[float]], form: Any
) -> None:
    given = {option: form(values) for option, values in fractions.items()}
    for number, expert in enumerate("abc"):
        alone = {option: values[number] for option, values in fractions.items()}
        result = sparse_vector(models, {**stage, **given}, expert)
        expected = sparse_vector(models, {**stage, **alone}, expert)
        assert all(torch.equal(result[name], expected[name]) for name in SHAPES)


def test_ties_trims_every_expert_by_its_own_density(models: dict[str, State]) -> None:
    experts = {name: models[name] for name in "abc"}
    pool = {"base": models["base"], "models": experts}
    options = {"scope": "tensor", "zero_sign": "positive", "weights": [0.5, 1.0, 2.0]}
    density = {"c": 0.9, "a": 0.2, "b": 0.5}
    merged = merge({"name": "ties", "density": density, **options}, pool)
    for name, base in models["base"].items():
        rows = []
        for expert, weight in zip("abc", options["weights"], strict=True):
            vector = experts[expert][name] - base
            largest = vector.flatten().abs().topk(max(1, int(density[expert] * vector.numel())))
            rows.append(weight * vector * (vector.abs() >= largest.values.min()))
        signs = torch.where(sum(rows) >= 0, 1.0, -1.0)
        agree = [(row * signs > 0) for row in rows]
        total = sum(row * mask for row, mask in zip(rows, agree, strict=True))
        share = sum(w * mask for w, mask in zip(options["weights"], agree, strict=True))
        expected = base + total / torch.where(share == 0, 1.0, share)
        torch.testing.assert_close(merged.tensor(name), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("density", "problem"),
    [
        ({"a": 0.5, "b": 0.5}, r"algorithm\.density has no value for c"),
        ({"a": 0.5, "b": 0.5, "x": 1}, "density names unknown experts: x"),
        ([0.5], "density has 1 entries for 3 experts"),
        ([], "density has 0 entries for 3 experts"),
        (
            {"a": 0.5, "b": 0.5, "c": 1.5},
            r"algorithm\.density\.c = 1\.5: .*less than or equal to 1",
        ),
        (1.5, r"algorithm\.density = 1\.5: .*less than or equal to 1"),
        ("half", "algorithm.density = 'half': expected a number, one per expert by name, such as"),
        ({"a": [0.5, 1]}, r"algorithm\.density\.a = \[0\.5, 1\]: expected a number, got a list"),
    ],
)
@pytest.mark.parametrize("method", ["trim", "ties", "dare", "breadcrumbs", "della"])
def test_wrong_fractions_are_named(
    models: dict[str, State], method: str, density: Any, problem: str
) -> None:
    experts = {name: models[name] for name in "abc"}
    stages = [{"name": method, "density": density}, *(["task-arithmetic"] * (method == "trim"))]
    with pytest.raises(RecipeError, match=problem.replace("algorithm", "algorithm.*")):
        merge(stages, {"base": models["base"], "models": experts}).tensor("matrix")


def test_probabilities_are_checked_for_every_expert() -> None:
    wrong = {"name": "della", "density": {"a": 0.5, "b": 0.2}, "epsilon": {"a": 0.3, "b": 0.3}}
    with pytest.raises(RecipeError, match=r"density 0.2 -\+ epsilon 0.3"):
        merge(wrong, {"base": {}, "models": {"a": {}, "b": {}}})
