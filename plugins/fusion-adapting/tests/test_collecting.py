"""Linear layers that collect the gradient of coefficients have the gradient of whole matrices."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusion_adapting import LiveMerge, count_live_memory, replace_parameters
from fusion_adapting._factored import PartlyFactored
from fusion_core import RunContext
from fusion_core.weights import Linear, LowRank
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

ROWS, COLUMNS, EXPERTS = 48, 64, 3
GRAINS = ["tensor", "row", "column", "row+column"]


class Twice(nn.Module):
    """Calls its layer twice, and changes the outputs in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(COLUMNS, ROWS)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs).relu_() + self.layer(inputs.sin()).tanh_()


class Crossed(Twice):
    """Uses the layer's weight outside of the layer, too."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) @ self.layer.weight


class Tied(Twice):
    """Shares the layer's weight with an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ROWS, COLUMNS)
        self.embedding.weight = self.layer.weight


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def make_pool(model: type[nn.Module], rank: int | tuple[int, ...]) -> CheckpointsPool:
    torch.manual_seed(0)
    base: Any = model().double()
    experts = {name: copy.deepcopy(base) for name in "abc"}
    ranks = rank if isinstance(rank, tuple) else (rank,) * EXPERTS
    for seed, (expert, size) in enumerate(zip(experts.values(), ranks, strict=True)):
        left, right = random(ROWS, size, seed=seed), random(size, COLUMNS, seed=seed + EXPERTS)
        expert.layer.weight.data += 0.1 * left @ right
        expert.layer.bias.data += size == ROWS  # a model that is no adapter
    return CheckpointsPool(CheckpointsConfig(base=base, models=experts))


def live_merge(
    model: type[nn.Module] = Twice,
    storage: Any = "auto",
    grain: Any = "row+column",
    *,
    rank: int | tuple[int, ...] = 2,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> LiveMerge:
    """Return a live merge with some coefficients; the task vectors have this rank, or these."""
    pool = make_pool(model, rank)
    merged = RunContext().merge_matrices(pool, Linear((0.3,) * EXPERTS))
    choice: dict[str, Any] = {"storage": storage, "grain": grain, "dtype": dtype, **options}
    live = LiveMerge(pool, merged, torch.device("cpu"), **choice)
    live.merge(random(EXPERTS, live.columns, seed=9).to(dtype))
    return live


def back_propagate(live: LiveMerge, *, bf16: bool = False) -> Tensor:
    inputs = random(4, 5, COLUMNS, seed=10).to(live.dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        outputs = live.model(inputs)
    outputs.to(live.dtype).square().sum().backward()
    assert inputs.grad is not None
    return inputs.grad


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("model", [Twice, Crossed])
def test_the_gradient_is_that_of_whole_matrices(model: type[nn.Module], grain: str) -> None:
    whole, collecting = live_merge(model, "fp32", grain), live_merge(model, "auto", grain)
    expected_of_inputs, of_inputs = back_propagate(whole), back_propagate(collecting)
    (leaf,) = collecting.leaves
    assert leaf.vectors.storage == "factors"
    assert {*collecting.model.state_dict()} == {*whole.model.state_dict()}
    assert (leaf.parameter.grad is None) == (model is Twice), "the weight got a gradient of its own"
    gradient = collecting.gradient()
    torch.testing.assert_close(gradient, whole.gradient())
    torch.testing.assert_close(of_inputs, expected_of_inputs)
    back_propagate(collecting)
    torch.testing.assert_close(collecting.gradient(), gradient, msg="a gradient was not cleared")


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("storage", ["fp32", "auto"])
def test_bf16_passes_are_off_by_the_rounding_of_bf16(storage: str, grain: str) -> None:
    exact = live_merge(storage="fp32", grain=grain)
    back_propagate(exact)
    live = live_merge(storage=storage, grain=grain, dtype=torch.float32)
    back_propagate(live, bf16=True)
    gradient, expected = live.gradient(), exact.gradient()
    assert gradient.dtype is torch.float32
    assert 0 < (gradient - expected).norm() / expected.norm() < 2**-8


@pytest.mark.parametrize("model", [Twice, Crossed])
def test_weights_in_bf16_give_what_passes_in_bf16_give(model: type[nn.Module]) -> None:
    plain, rounded = (
        live_merge(model, dtype=torch.float32, bf16_passes=bf16_passes)
        for bf16_passes in (False, True)
    )
    assert [leaf.parameter.dtype for leaf in rounded.leaves] == [torch.bfloat16]
    expected, of_inputs = (back_propagate(live, bf16=True) for live in (plain, rounded))
    assert torch.equal(of_inputs, expected)
    torch.testing.assert_close(rounded.gradient(), plain.gradient())


def test_weights_in_bf16_serve_passes_in_fp32() -> None:
    plain = live_merge(storage="fp32", dtype=torch.float32)
    (leaf,) = plain.leaves
    leaf.parameter.data = leaf.parameter.bfloat16().float()
    rounded = live_merge(dtype=torch.float32, bf16_passes=True)
    torch.testing.assert_close(back_propagate(rounded), back_propagate(plain))


def test_weights_that_an_embedding_has_too_stay_as_they_are() -> None:
    live = live_merge(Tied, dtype=torch.float32, bf16_passes=True)
    assert [leaf.parameter.dtype for leaf in live.leaves] == [torch.float32]


def test_factors_that_are_hardly_smaller_than_the_matrix_are_not_worth_it() -> None:
    limit = ROWS * COLUMNS // (2 * (ROWS + COLUMNS) * EXPERTS)
    for rank in (limit, limit + 1):
        live = live_merge(rank=rank)
        back_propagate(live)
        (leaf,) = live.leaves
        assert leaf.vectors.storage == "factors"
        assert (leaf.parameter.grad is None) == (rank <= limit)


@pytest.mark.parametrize(
    ("rank", "storage"),
    [(2, "auto"), (5, "auto"), ((ROWS, 2, 2), "auto"), (2, "fp32"), (2, "disk")],
)
@pytest.mark.parametrize("bf16_passes", [True, False])
def test_the_memory_of_adapters_is_known_from_headers(
    rank: Any, storage: Any, monkeypatch: pytest.MonkeyPatch, *, bf16_passes: bool
) -> None:
    live = live_merge(storage=storage, rank=rank, bf16_passes=bf16_passes)
    back_propagate(live)
    held = [*live.model.parameters()]
    held += [parameter.grad for parameter in held if parameter.grad is not None]
    for leaf in live.leaves:
        vectors: Any = leaf.vectors
        parts = vars(vectors)
        if isinstance(vectors, PartlyFactored):  # both parts have the same base
            parts = vars(vectors.factored) | {"rows": vectors.whole.rows}
        held += [
            value
            for value in parts.values()
            if isinstance(value, Tensor) and value.dtype.is_floating_point
        ]

    def low_rank(name: str) -> LowRank:
        return LowRank(rank_of[name], lambda: pytest.fail("it was read"))

    rank_of = {"layer.weight": rank[-1] if isinstance(rank, tuple) else rank, "layer.bias": 0}
    pool = make_pool(Twice, rank)
    for expert in [*pool.experts.values()][isinstance(rank, tuple) :]:
        monkeypatch.setattr(expert, "is_delta", True)
        monkeypatch.setattr(expert, "low_rank", low_rank)
    counted = count_live_memory(pool, storage=storage, grain="row", bf16_passes=bf16_passes)
    assert counted == sum(tensor.nbytes for tensor in held)


def test_a_weight_that_takes_another_s_place_gets_its_own_gradient() -> None:
    live = live_merge()
    other = nn.Parameter(random(ROWS, COLUMNS, seed=11))
    with replace_parameters(live.model, {"layer.weight": other}):
        back_propagate(live)
    plain: Any = Twice().double()
    plain.layer.load_state_dict({"weight": other.detach(), "bias": live.model.layer.bias.detach()})
    inputs = random(4, 5, COLUMNS, seed=10)
    plain(inputs).square().sum().backward()
    torch.testing.assert_close(other.grad, plain.layer.weight.grad)
    assert not live.gradient().any()
