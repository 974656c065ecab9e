from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion_core import AlgorithmSpec, run_fusion
from fusion_core.commands import load_plugins
from fusion_core.errors import RecipeError

State = dict[str, torch.Tensor]

BASE: State = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "n": torch.tensor(7)}
EXPERTS: dict[str, State] = {
    "a": {"w": torch.tensor([[2.0, 2.0], [1.0, 8.0]]), "n": torch.tensor(8)},
    "b": {"w": torch.tensor([[0.0, 6.0], [3.0, 0.0]]), "n": torch.tensor(9)},
}
# Task vectors: a [[1, 0], [-2, 4]], b [[-1, 4], [0, -4]].


def merge(
    algorithm: str, base: State | None = BASE, experts: dict[str, State] = EXPERTS, **options: Any
) -> State:
    pool = {"models": experts, **({} if base is None else {"base": base})}
    run = run_fusion(algorithm={"name": algorithm, **options}, model_pool=pool)
    return run.weights.state_dict()


def random_models(count: int, dtype: torch.dtype = torch.float32) -> tuple[State, dict[str, State]]:
    generator = torch.Generator().manual_seed(count)

    def state() -> State:
        shapes = {"m": (9, 4), "v": (5,), "s": (), "e": (0, 2)}
        return {n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}

    return state(), {f"e{n}": state() for n in range(count)}


# --- by hand ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "options", "expected"),
    [
        ("simple-average", {}, [[1, 4], [2, 4]]),
        ("weighted-average", {}, [[1, 4], [2, 4]]),
        ("weighted-average", {"weights": [3, 1]}, [[1.5, 3], [1.5, 6]]),
        ("weighted-average", {"weights": {"a": 3}}, [[1.5, 3], [1.5, 6]]),
        ("weighted-average", {"weights": {"b": 3}}, [[0.5, 5], [2.5, 2]]),
        ("weighted-average", {"weights": [2, 1], "normalize": False}, [[4, 10], [5, 16]]),
        ("weighted-average", {"weights": [2, -1]}, [[4, -2], [-1, 16]]),
        ("task-arithmetic", {"scale": 1}, [[1, 6], [1, 4]]),
        ("task-arithmetic", {"scale": 0.5}, [[1, 4], [2, 4]]),
        ("task-arithmetic", {"scale": 0.5, "weights": [2, 1]}, [[1.5, 4], [1, 6]]),
        ("task-arithmetic", {"scale": 0.5, "weights": {"a": 2}}, [[1.5, 4], [1, 6]]),
        ("task-arithmetic", {"scale": -1, "weights": [1, 0]}, [[0, 2], [5, 0]]),
    ],
)
def test_cases_computed_by_hand(
    algorithm: str, options: dict[str, Any], expected: list[list[float]]
) -> None:
    result = merge(algorithm, **options)
    assert result["w"].tolist() == expected
    assert result["n"].tolist() == 7  # integers are the base's


def test_the_default_scale_is_that_of_the_paper() -> None:
    result = merge("task-arithmetic")["w"]
    torch.testing.assert_close(result, BASE["w"] + 0.3 * torch.tensor([[0.0, 4.0], [-2.0, 0.0]]))


@pytest.mark.parametrize("algorithm", ["simple-average", "weighted-average"])
def test_averages_need_no_base_and_ignore_it(algorithm: str) -> None:
    assert merge(algorithm, base=None)["w"].tolist() == [[1, 4], [2, 4]]
    assert merge(algorithm, base=None)["n"] == 8  # the first expert's


def test_task_arithmetic_needs_a_base() -> None:
    with pytest.raises(RecipeError, match="needs a base"):
        merge("task-arithmetic", base=None)


# --- identities ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_copies_of_one_model_are_that_model(count: int, dtype: torch.dtype) -> None:
    base, experts = random_models(1, dtype)
    copies = {str(n): experts["e0"] for n in range(count)}
    for algorithm, options in (
        ("simple-average", {}),
        ("weighted-average", {"weights": list(range(1, count + 1))}),
        ("task-arithmetic", {"scale": 1 / count}),
    ):
        result = merge(algorithm, base, copies, **options)
        for name in base:
            # Task vector, factor, product, `count` sums and base are each rounded by at most
            # epsilon / 2 of a number that is no larger than the sum of these two.
            sizes = (base[name].abs() + experts["e0"][name].abs()).double()
            bound = (count + 4) * torch.finfo(dtype).eps / 2 * sizes
            error = result[name].double() - experts["e0"][name].double()
            assert (error.abs() <= bound).all()
            assert result[name].dtype is dtype


def test_scale_zero_is_the_base() -> None:
    base, experts = random_models(4)
    result = merge("task-arithmetic", base, experts, scale=0)
    assert all(torch.equal(result[name], base[name]) for name in base)


@pytest.mark.parametrize("algorithm", ["simple-average", "weighted-average", "task-arithmetic"])
def test_the_order_of_experts_does_not_matter(algorithm: str) -> None:
    base, experts = random_models(5, torch.float64)
    one = merge(algorithm, base, experts)
    other = merge(algorithm, base, dict(reversed(experts.items())))
    for name in base:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-14)


def test_an_average_is_task_arithmetic_with_scale_1_over_k() -> None:
    base, experts = random_models(5)
    one = merge("simple-average", base, experts)
    other = merge("task-arithmetic", base, experts, scale=1 / 5)
    for name in base:
        torch.testing.assert_close(one[name], other[name])


def test_half_precision_is_summed_in_fp32_and_rounded_once() -> None:
    base, experts = random_models(8, torch.bfloat16)
    result = merge("simple-average", base, experts)
    for name in base:
        total = sum(expert[name].float() for expert in experts.values())
        assert torch.equal(result[name], (total / 8).to(torch.bfloat16))


# --- bad options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"weights": [1, -1]}, "sum to 0, which cannot be normalised"),
        ({"weights": [0, 0]}, "sum to 0"),
        ({"weights": [0.1, -0.1 + 1e-18]}, "cannot be normalised"),
        ({"weights": {"a": 1e30, "b": -1e30}}, "cannot be normalised"),
        ({"weights": [1]}, "1 entries for 2 experts"),
        ({"weights": [1, 2, 3]}, "3 entries for 2 experts"),
        ({"weights": []}, "0 entries for 2 experts"),
        ({"weights": {"a": 1, "z": 2, "q": 1}}, "unknown experts: q, z"),
        ({"weights": "ab"}, "algorithm.weights"),
        ({"weights": [1, "x"]}, "algorithm.weights"),
        ({"weights": {"a": None}}, "algorithm.weights"),
        ({"weights": [float("nan"), 1]}, "finite"),
        ({"wieghts": [1, 1]}, "did you mean weights"),
        ({"normalize": "maybe"}, "algorithm.normalize"),
    ],
)
def test_bad_weights_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem) as caught:
        merge("weighted-average", **options)
    assert caught.value.exit_code == 2


def test_weights_may_cancel_without_normalisation() -> None:
    result = merge("weighted-average", weights=[1, -1], normalize=False)
    assert result["w"].tolist() == [[2, -4], [-2, 8]]


@pytest.mark.parametrize(
    "options", [{"scale": "big"}, {"scale": None}, {"scal": 1}, {"weights": [1]}]
)
def test_bad_task_arithmetic_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        merge("task-arithmetic", **options)


def test_simple_average_has_no_options() -> None:
    with pytest.raises(
        RecipeError, match=r"algorithm\.weights: unknown option; known: only, skip, overrides"
    ):
        merge("simple-average", weights=[1, 1])


def test_methods_are_registered() -> None:
    for name in ("simple-average", "weighted-average", "task-arithmetic"):
        component = load_plugins().find(AlgorithmSpec, name)
        assert component.plugin.distribution == "fusion-linear"
        assert component.load_class().config_class is component.load_config()
