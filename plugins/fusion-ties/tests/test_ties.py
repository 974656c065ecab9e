from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_core import AlgorithmSpec, RunContext, run_fusion
from fusion_core.commands import load_plugins
from fusion_core.errors import RecipeError
from fusion_ties.ties import Ties
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

State = dict[str, torch.Tensor]


def merge(base: State, experts: dict[str, State], **options: Any) -> State:
    """Merge by the method itself, in fp32 (in fp64 if an operand is)."""
    pool = CheckpointsPool(CheckpointsConfig(base=base, models=experts))
    return Ties(**options).run(pool, RunContext()).state_dict()


def dense(  # noqa: PLR0913, PLR0917 - the options of the method
    base: State,
    experts: dict[str, State],
    density: float,
    scale: float,
    scope: str,
    weights: list[float],
    normalize: bool,  # noqa: FBT001
    zero_sign: str,
) -> State:
    """TIES written from the paper's definition, on whole vectors, by sorting.

    `scope: model` has one vector per model, `tensor` one per tensor.
    """
    groups = [list(base)] if scope == "model" else [[name] for name in base]
    result: State = {}
    for names in groups:
        wide = any(s[n].dtype is torch.float64 for s in (base, *experts.values()) for n in names)
        dtype = torch.float64 if wide else torch.float32

        def vector(
            state: State, names: list[str] = names, dtype: torch.dtype = dtype
        ) -> torch.Tensor:
            return torch.cat([state[name].reshape(-1).to(dtype) for name in names])

        origin = vector(base)
        rows = torch.stack([vector(expert) - origin for expert in experts.values()])
        count = rows.shape[1]
        limit = 0 if density == 0 else max(1, int(density * count))
        for row in rows:
            if limit == 0 or count == 0:
                row.zero_()
                continue
            threshold = row.abs().sort(descending=True).values[limit - 1]
            row[row.abs() < threshold] = 0
        factors = torch.tensor(weights, dtype=dtype)[:, None]
        rows = rows * factors
        total = sum(rows[1:], rows[0])
        sign = total.sign()
        majority = sign.sum().sign() if zero_sign == "majority" and limit else torch.tensor(1.0)
        sign[sign == 0] = majority.to(dtype)
        agree = ((rows.sign() == sign) & (rows != 0)).to(dtype)
        merged = sum((rows * agree)[1:], (rows * agree)[0])
        if normalize:
            shares = factors.abs() * agree
            divisor = sum(shares[1:], shares[0])
            divisor[divisor == 0] = 1
            merged = merged / divisor
        flat = origin + scale * merged
        start = 0
        for name in names:
            stop = start + base[name].numel()
            result[name] = flat[start:stop].reshape(base[name].shape)
            start = stop
    return result


def random_models(
    seed: int, dtype: torch.dtype, experts: int = 3
) -> tuple[State, dict[str, State]]:
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "m": (13, 7),
        "v": (29,),
        "s": (),
        "t": (3, 2, 5),
        "e": (0, 3),
    }

    def state(scale: float) -> State:
        return {
            name: (scale * torch.randn(shape, generator=generator))
            for name, shape in shapes.items()
        }

    base = {name: values.to(dtype) for name, values in state(1.0).items()}
    experts_by_name = {}
    for n in range(experts):
        deltas = state(0.1 * (n + 1))
        experts_by_name[f"e{n}"] = {
            name: (base[name].float() + deltas[name]).to(dtype) for name in shapes
        }
    return base, experts_by_name


def assert_same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].shape == other[name].shape
        assert torch.equal(one[name], other[name].to(one[name].dtype)), name


# --- the definition -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_every_option_equals_the_dense_definition(scope: str, dtype: torch.dtype) -> None:
    equal, unequal = [1.0, 1.0, 1.0], [1.0, 0.5, 2.0]
    for seed, density, normalize, zero_sign, weights, scale in (
        (0, 0.0, True, "majority", equal, 1.0),
        (1, 0.01, True, "majority", unequal, 1.0),
        (2, 0.2, True, "majority", equal, 1.0),
        (3, 0.2, True, "positive", unequal, 1.0),
        (4, 0.2, False, "majority", unequal, 0.3),
        (5, 0.73, False, "positive", equal, 1.0),
        (6, 0.73, True, "positive", equal, -1.5),
        (7, 1.0, True, "majority", unequal, 1.0),
        (8, 1.0, False, "majority", equal, 0.3),
        (9, 0.3, True, "majority", [0.3, -0.7, 1.1], 0.3),
        (10, 0.3, False, "positive", [0.0, 0.0, 0.0], 2.0),
    ):
        base, experts = random_models(seed, dtype)
        merged = merge(
            base,
            experts,
            density=density,
            scope=scope,
            normalize=normalize,
            zero_sign=zero_sign,
            weights=weights,
            scale=scale,
        )
        assert_same(
            merged, dense(base, experts, density, scale, scope, weights, normalize, zero_sign)
        )


def test_the_scopes_differ() -> None:
    base, experts = random_models(0, torch.float32)
    for expert in experts.values():
        expert["v"] = base["v"] + 100 * (expert["v"] - base["v"])
    by_model = merge(base, experts, scope="model", density=0.1)
    by_tensor = merge(base, experts, scope="tensor", density=0.1)
    assert torch.equal(by_model["m"], base["m"])  # only the large tensor's entries are kept
    assert not torch.equal(by_tensor["m"], base["m"])


def test_a_case_computed_by_hand() -> None:
    # Task vectors, and what a density of 0.5 keeps of them (the two largest of four):
    #   a: [[ 4, -3], [ 1,  0]] -> [[4, -3], [ 0, 0]]
    #   b: [[ 1,  2], [-6, -2]] -> [[0,  2], [-6, -2]]   2 and -2 are equal: both stay
    #   c: [[-5,  1], [ 3,  0]] -> [[-5, 0], [ 3, 0]]
    # Sums: [[-1, -1], [-3, -2]], so every elected sign is minus.
    # Means over the experts that agree: [[-5, -3], [-6, -2]].
    base = {"w": torch.tensor([[10.0, 20.0], [30.0, 40.0]])}
    deltas = {
        "a": [[4.0, -3.0], [1.0, 0.0]],
        "b": [[1.0, 2.0], [-6.0, -2.0]],
        "c": [[-5.0, 1.0], [3.0, 0.0]],
    }
    experts = {name: {"w": base["w"] + torch.tensor(delta)} for name, delta in deltas.items()}
    merged = merge(base, experts, density=0.5)
    assert merged["w"].tolist() == [[5, 17], [24, 38]]
    # Weights of 3, 1, 1: sums [[12 - 5, -9 + 2], [-6 + 3, -2]]; signs [[+, -], [-, -]].
    merged = merge(base, experts, density=0.5, weights={"a": 3})
    assert merged["w"].tolist() == [[14, 17], [24, 38]]
    # Summed and scaled by 0.5: agreeing sums [[12, -9], [-6, -2]].
    merged = merge(base, experts, density=0.5, weights=[3, 1, 1], normalize=False, scale=0.5)
    assert merged["w"].tolist() == [[16, 15.5], [27, 39]]


def test_the_mean_is_over_the_experts_that_agree() -> None:
    base = {"w": torch.zeros(2)}
    experts = {
        "a": {"w": torch.tensor([1.0, 2.0])},
        "b": {"w": torch.tensor([3.0, -1.0])},
        "c": {"w": torch.tensor([-2.0, 0.0])},
    }
    assert merge(base, experts, density=1.0)["w"].tolist() == [2.0, 2.0]
    assert merge(base, experts, density=1.0, normalize=False)["w"].tolist() == [4.0, 2.0]


def test_entries_that_cancel_take_the_majoritys_sign() -> None:
    base = {"w": torch.zeros(4)}
    experts = {
        "a": {"w": torch.tensor([1.0, -1.0, -2.0, 0.0])},
        "b": {"w": torch.tensor([-1.0, -1.0, -2.0, 0.0])},
    }
    # The first entry cancels; two of the others are negative, none positive.
    assert merge(base, experts, density=1.0)["w"].tolist() == [-1, -1, -2, 0]
    assert merge(base, experts, density=1.0, zero_sign="positive")["w"].tolist() == [1, -1, -2, 0]
    # Where everything cancels there is no majority, and nothing is merged.
    experts = {"a": {"w": torch.tensor([1.0, -2.0])}, "b": {"w": torch.tensor([-1.0, 2.0])}}
    assert merge({"w": torch.zeros(2)}, experts, density=1.0)["w"].tolist() == [0, 0]
    assert merge({"w": torch.zeros(2)}, experts, density=1.0, zero_sign="positive")[
        "w"
    ].tolist() == [1, 2]


def test_the_majority_is_that_of_the_scope() -> None:
    base = {"x": torch.zeros(2), "y": torch.zeros(3)}
    experts = {
        "a": {"x": torch.tensor([1.0, 5.0]), "y": torch.tensor([-5.0, -5.0, -5.0])},
        "b": {"x": torch.tensor([-1.0, 5.0]), "y": torch.tensor([-5.0, -5.0, -5.0])},
    }
    assert merge(base, experts, density=1.0, scope="tensor")["x"].tolist() == [1, 5]
    assert merge(base, experts, density=1.0, scope="model")["x"].tolist() == [-1, 5]


# --- identities ---------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 5),
    scope=st.sampled_from(["model", "tensor"]),
    zero_sign=st.sampled_from(["majority", "positive"]),
)
def test_copies_of_one_model_are_that_model(
    seed: int, count: int, scope: str, zero_sign: str
) -> None:
    base, models = random_models(seed, torch.float32, experts=1)
    (expert,) = models.values()
    experts = {str(n): expert for n in range(count)}
    merged = merge(base, experts, density=1.0, scope=scope, zero_sign=zero_sign)
    for name in base:
        torch.testing.assert_close(merged[name], expert[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"scope": "tensor"}, {"normalize": False}, {"density": 0}])
def test_scale_zero_is_the_base(options: dict[str, Any]) -> None:
    base, experts = random_models(5, torch.float32)
    assert_same(merge(base, experts, scale=0.0, **options), base)


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_density_zero_is_the_base(scope: str) -> None:
    base, experts = random_models(5, torch.float32)
    assert_same(merge(base, experts, density=0.0, scope=scope), base)


def test_one_expert_and_density_one_is_that_expert() -> None:
    base, experts = random_models(6, torch.bfloat16, experts=1)
    merged = merge(base, experts, density=1.0)
    assert_same({n: values.to(torch.bfloat16) for n, values in merged.items()}, experts["e0"])


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_the_order_of_experts_does_not_matter(scope: str) -> None:
    base, experts = random_models(7, torch.float32, experts=4)
    expected = merge(base, experts, density=0.3, scope=scope)
    for order in itertools.islice(itertools.permutations(experts), 1, 24, 5):
        merged = merge(base, {name: experts[name] for name in order}, density=0.3, scope=scope)
        for name in base:
            torch.testing.assert_close(merged[name], expected[name], rtol=1e-6, atol=1e-6)


def test_scaling_all_weights_changes_nothing_when_they_are_normalised() -> None:
    base, experts = random_models(8, torch.float32)
    one = merge(base, experts, weights=[1, 2, 3])
    other = merge(base, experts, weights=[2, 4, 6])
    assert_same(one, other)


def test_a_negative_weight_negates_a_task_vector() -> None:
    base, experts = {"w": torch.zeros(3)}, {"a": {"w": torch.tensor([1.0, -2, 3])}}
    assert merge(base, experts, density=1.0, weights=[-1])["w"].tolist() == [-1, 2, -3]
    experts["b"] = {"w": torch.tensor([2.0, 2, 2])}
    negated = {**experts, "b": {"w": -experts["b"]["w"]}}
    one = merge(base, experts, density=1.0, weights=[1, -3])
    assert_same(one, merge(base, negated, density=1.0, weights=[1, 3]))


def test_inputs_are_not_modified() -> None:
    base, experts = random_models(9, torch.float32)
    before = {
        n: {k: v.clone() for k, v in state.items()} for n, state in {"": base, **experts}.items()
    }
    merge(base, experts)
    for name, state in {"": base, **experts}.items():
        assert_same(state, before[name])


# --- in a run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_blocks_and_workers_change_no_bit(monkeypatch: pytest.MonkeyPatch, scope: str) -> None:
    base, experts = random_models(10, torch.bfloat16)
    expected = merge(base, experts, scope=scope)
    monkeypatch.setattr("fusion_core.weights.source.BLOCK", 16)
    assert_same(merge(base, experts, scope=scope), expected)
    pool = CheckpointsPool(CheckpointsConfig(base=base, models=experts))
    with ThreadPoolExecutor(3) as executor:
        merged = Ties(scope=scope).run(pool, RunContext(executor=executor))
        merged.prepare(executor)
        assert_same(dict(zip(base, executor.map(merged.tensor, base), strict=True)), expected)


def test_ties_is_registered_and_runs_by_its_name() -> None:
    component = load_plugins().find(AlgorithmSpec, "ties")
    assert component.plugin.distribution == "fusion-ties"
    assert component.spec.needs_base
    base, experts = random_models(11, torch.float32)
    pool = {"base": base, "models": experts}
    result = run_fusion(algorithm={"name": "ties", "density": 0.4}, model_pool=pool)
    assert_same(result.weights.state_dict(), merge(base, experts, density=0.4))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"density": 1.1}, "algorithm.density = 1.1"),
        ({"density": -0.1}, "algorithm.density = -0.1"),
        ({"scope": "layer"}, "algorithm.scope = 'layer'"),
        ({"zero_sign": "minus"}, "algorithm.zero_sign = 'minus'"),
        ({"desnity": 0.5}, "did you mean density"),
        ({"weights": {"nobody": 1}}, "weights names unknown experts: nobody"),
        ({"weights": [1]}, "1 entries for 3 experts"),
        ({"scale": float("inf")}, "finite"),
    ],
)
def test_invalid_options_are_errors(options: dict[str, Any], problem: str) -> None:
    base, experts = random_models(0, torch.float32)
    with pytest.raises(RecipeError, match=problem):
        run_fusion(
            algorithm={"name": "ties", **options}, model_pool={"base": base, "models": experts}
        )


def test_ties_needs_a_base() -> None:
    _, experts = random_models(0, torch.float32)
    with pytest.raises(RecipeError, match="'ties' needs a base"):
        run_fusion(algorithm="ties", model_pool={"models": experts})
    with pytest.raises(RecipeError, match="'ties' needs a base"):
        Ties().run({"models": experts})
