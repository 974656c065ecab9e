"""RegMean and RegMean++ against least squares on stacked inputs, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusion_adapting import Moments
from fusion_core import RunContext, run_fusion
from fusion_core.errors import FusionError
from fusion_regmean.least_squares import LeastSquares, moment_of
from fusion_regmean.plus_plus import RegMeanPlusPlus
from fusion_regmean.regmean import RegMean
from fusion_testing import TinyTasks

BLOCKS = [["embed"], ["layers.0.up", "layers.0.down"], ["layers.1.up", "layers.1.down"], ["head"]]
OPTIONS: list[dict[str, Any]] = [
    {"off_diagonal": 1.0, "ridge": 1e-3},
    {"off_diagonal": 0.9},
    {"off_diagonal": 0.3, "ridge": 0.1},
]


def solve_stacked(
    layer_inputs: list[Tensor], weights: list[Tensor], options: dict[str, Any]
) -> Tensor:
    """Solve rows X_k W' = X_k W_k', with additional rows for the shrinking and the ridge."""
    off, ridge = options["off_diagonal"], options.get("ridge", 1e-6)
    rows, targets = [], []
    for inputs, weight in zip(layer_inputs, weights, strict=True):
        squares = inputs.square().mean(0)
        share = (1 - off) * squares + ridge * squares.mean()
        stacked = torch.cat([(off / len(inputs)) ** 0.5 * inputs, torch.diag(share.sqrt())])
        rows.append(stacked)
        targets.append(stacked @ weight.T)
    return torch.linalg.lstsq(torch.cat(rows), torch.cat(targets)).solution.T


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_regmean_solves_every_linear_layer(seed: int, options: dict[str, Any], stacks: Any) -> None:
    pool = stacks.pool(seed=seed)
    merged = stacks.merge(RegMean(samples=40, **options), pool, seed=seed)
    experts = stacks.experts(pool)
    inputs = {e: stacks.inputs(s, stacks.images(e, seed=seed)) for e, s in experts.items()}
    expected = stacks.mean(pool)
    for name in (f"{layer}.weight" for block in BLOCKS for layer in block):
        rows = [inputs[expert][name] for expert in experts]
        weights = [state[name] for state in experts.values()]
        expected[name] = solve_stacked(rows, weights, options)
    for name, values in expected.items():
        torch.testing.assert_close(merged[name], values, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_regmean_plus_plus_solves_blocks_over_the_merged_prefix(
    seed: int, options: dict[str, Any], stacks: Any
) -> None:
    pool = stacks.pool(seed=seed)
    merged = stacks.merge(RegMeanPlusPlus(samples=40, **options), pool, seed=seed)
    experts = stacks.experts(pool)
    expected = stacks.mean(pool)
    for block in BLOCKS:
        prefix = block[0].rpartition(".")[0] or block[0]
        inputs = {}
        for expert, state in experts.items():
            members = {n: v for n, v in state.items() if n.startswith(f"{prefix}.")}
            inputs[expert] = stacks.inputs(expected | members, stacks.images(expert, seed=seed))
        solved = {
            f"{layer}.weight": solve_stacked(
                [inputs[expert][f"{layer}.weight"] for expert in experts],
                [state[f"{layer}.weight"] for state in experts.values()],
                options,
            )
            for layer in block
        }
        expected |= solved
    for name, values in expected.items():
        torch.testing.assert_close(merged[name], values, rtol=1e-6, atol=1e-8)
    plain = stacks.merge(RegMean(samples=40, **options), pool, seed=seed)
    torch.testing.assert_close(merged["embed.weight"], plain["embed.weight"])
    assert (merged["head.weight"] - plain["head.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("method", [RegMean, RegMeanPlusPlus])
def test_one_expert_is_that_expert(method: Any, stacks: Any) -> None:
    pool = stacks.pool(experts=1)
    merged = stacks.merge(method(samples=8), pool)
    for name, values in pool.experts["a"].state_dict().items():
        torch.testing.assert_close(merged[name], values, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["regmean", "regmean-plus-plus"])
def test_excluded_tensors_are_the_bases(method: str, stacks: Any) -> None:
    pool = stacks.pool()
    base = pool.base.state_dict()
    merged = stacks.merge({"name": method, "samples": 8, "only": "layers.0.*"}, pool)
    for name, values in merged.items():
        assert torch.equal(values, base[name]) != name.startswith("layers.0")
    torch.testing.assert_close(merged["layers.0.up.bias"], stacks.mean(pool)["layers.0.up.bias"])


def test_a_case_by_hand() -> None:
    """Expert one gets only the first input, expert two only the second: each decides a column."""
    sums = LeastSquares(torch.zeros(2, 2), 1)
    sums.add(
        torch.tensor([[1.0, 9.0], [2.0, 9.0]]), torch.tensor([[4.0, 0.0], [0.0, 0.0]]).double()
    )
    sums.add(
        torch.tensor([[9.0, 3.0], [9.0, 4.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]]).double()
    )
    assert torch.equal(sums.solve("w", 0), torch.tensor([[1.0, 3.0], [2.0, 4.0]]))


def test_a_conv1d_has_inputs_along_the_first_dimension() -> None:
    draw = torch.Generator().manual_seed(0)
    linear, turned = LeastSquares(torch.zeros(3, 2), 1), LeastSquares(torch.zeros(2, 3), 0)
    for _ in range(2):
        weight = torch.randn(3, 2, generator=draw)
        rows = torch.randn(6, 2, generator=draw).double()
        linear.add(weight, rows.T @ rows)
        turned.add(weight.T, rows.T @ rows)
    assert torch.equal(linear.solve("w", 0).T, turned.solve("w", 0))


def test_moments_are_shrunk_off_the_diagonal() -> None:
    merged = moment_of(
        Moments(torch.tensor([[4.0, 2.0], [2.0, 8.0]]), 1, count=2), off_diagonal=0.5, ridge=0.1
    )
    assert merged.tolist() == [[2.3, 0.5], [0.5, 4.3]]


@pytest.mark.parametrize(("ridge", "larger"), [(0, "1e-06"), (1e-6, "0.0001")])
def test_undetermined_weights_are_errors_with_a_name(ridge: float, larger: str) -> None:
    sums = LeastSquares(torch.zeros(2, 2), 1)
    sums.add(torch.ones(2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double())
    with pytest.raises(FusionError, match="inputs of 'head' do not determine") as caught:
        sums.solve("head", ridge)
    assert str(caught.value.hint).endswith(f"ridge than {ridge:g}: --set algorithm.ridge={larger}")


@pytest.mark.parametrize("method", [RegMean, RegMeanPlusPlus])
def test_a_layer_whose_inputs_are_all_zero_is_averaged(
    method: Any, stacks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, warnings = stacks.pool(), []
    monkeypatch.setattr(RunContext, "warn", lambda _, message: warnings.append(message))
    for model in (pool.config.base, *pool.config.models.values()):
        for parameter in model.layers[0].norm.parameters():
            nn.init.zeros_(parameter)
    merged = stacks.merge(method(samples=8), pool)
    for name in ("layers.0.up.weight", "layers.0.down.weight"):
        is_mean = torch.allclose(merged[name], stacks.mean(pool)[name], rtol=1e-12, atol=0)
        assert is_mean == (".up." in name)
    assert "uses 1 tensor (" in warnings[-1]
    assert warnings[-1].endswith("the largest: layers.0.up.weight): averaged")


def test_the_report_says_that_tasks_were_adapted_on(stacks: Any) -> None:
    class Transductive(TinyTasks):
        transductive = True

    for tasks, is_transductive in ((Transductive(), True), (TinyTasks(), False)):
        result = run_fusion(
            algorithm={"name": "regmean", "samples": 4}, model_pool=stacks.pool(), task_pool=tasks
        )
        assert result.report is not None
        assert result.report.transductive is is_transductive
