"""Task vectors of low rank are held as factors, with the same merge and the same gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_adapting import LiveMerge
from fusion_adapting._factored import Factored
from fusion_core import RunContext
from fusion_core.weights import Linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from pools_checkpoints import CheckpointsPool

_GRAINS = ["tensor", "row", "column", "row+column", "rank"]


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _live(pool: CheckpointsPool, storage: Any, grain: Any) -> LiveMerge:
    merged = RunContext().merge_matrices(pool, Linear((0.3,) * len(pool.experts)))
    dtype = pool.reference.infos["1.weight"].dtype
    return LiveMerge(pool, merged, torch.device("cpu"), storage=storage, grain=grain, dtype=dtype)


def _merge_and_differentiate(live: LiveMerge) -> list[torch.Tensor]:
    """Return the merged parameters and the gradient for some coefficients and inputs."""
    live.merge(_random(3, live.columns, dtype=live.dtype))
    live.model(_random(5, 3, 4, 4, dtype=live.dtype)).square().sum().backward()
    return [*(leaf.parameter.detach() for leaf in live.leaves), live.gradient()]


@pytest.fixture
def low_rank_pool(
    make_pool: Callable[..., CheckpointsPool],
) -> Callable[[torch.dtype], CheckpointsPool]:
    """Experts that differ from the base by products: of rank 2, of rank 1, and in no matrix."""

    def make(dtype: torch.dtype) -> CheckpointsPool:
        pool = make_pool("mlp", dtype=dtype)
        base = pool.config.base.state_dict()
        for rank, module in zip((2, 1, 0), pool.config.models.values(), strict=True):
            weights = {**module.state_dict()}
            for name in ("1.weight", "3.weight"):
                rows, columns = base[name].shape
                rank = min(rank, rows // 4)  # noqa: PLW2901 - a small matrix has room for one
                left, right = _random(rows, rank, dtype=dtype), _random(rank, columns, dtype=dtype)
                weights[name] = base[name] + 0.1 * left @ right
            module.load_state_dict(weights)
        return type(pool)(pool.config)

    return make


@pytest.mark.parametrize("grain", _GRAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_give_the_merge_and_the_gradient_of_whole_task_vectors(
    grain: str, dtype: torch.dtype, low_rank_pool: Callable[[torch.dtype], CheckpointsPool]
) -> None:
    pool, results = low_rank_pool(dtype), []
    for storage in ("fp32", "auto"):
        live = _live(pool, storage, grain)
        results.append(_merge_and_differentiate(live))
    kinds = {leaf.names[0]: type(leaf.vectors) is Factored for leaf in live.leaves}
    is_factored = grain != "rank"
    assert kinds == {
        "1.weight": is_factored,
        "1.bias": False,
        "3.weight": is_factored,
        "3.bias": False,
    }
    dense = str(dtype).removeprefix("torch.")
    factored = {"factors": 2, dense: 2} if is_factored else {dense: 4}
    assert live.count_storage() == factored
    tolerance: Any = {"rtol": 1e-5, "atol": 2e-5} if dtype is torch.float32 else {}
    for whole, product in zip(*results, strict=True):
        torch.testing.assert_close(product, whole, **tolerance)


@pytest.mark.parametrize("grain", ["tensor", "row", "column", "row+column"])
def test_only_the_task_vectors_of_high_rank_stay_whole(
    grain: str, low_rank_pool: Callable[[torch.dtype], CheckpointsPool]
) -> None:
    pool, results = low_rank_pool(torch.float64), []
    middle: Any = [*pool.config.models.values()][1]
    weight = middle.get_parameter("1.weight").data
    weight.copy_(_random(*weight.shape, dtype=weight.dtype))
    pool = type(pool)(pool.config)
    for storage in ("fp32", "auto"):
        live = _live(pool, storage, grain)
        results.append(_merge_and_differentiate(live))
    assert live.count_storage() == {"factors and float64": 1, "factors": 1, "float64": 2}
    vectors: Any = next(leaf.vectors for leaf in live.leaves if leaf.names[0] == "1.weight")
    assert len(vectors.whole.rows) == 1
    for whole, product in zip(*results, strict=True):
        torch.testing.assert_close(product, whole)


def test_matrices_of_high_rank_stay_whole(make_pool: Callable[..., CheckpointsPool]) -> None:
    live = _live(make_pool("mlp"), "auto", "row")
    assert not any(isinstance(leaf.vectors, Factored) for leaf in live.leaves)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("storage", ["auto", "fp32"])
def test_a_base_in_16_bits_stays_so_and_loses_nothing(
    stored: torch.dtype, storage: str, make_pool: Callable[..., CheckpointsPool]
) -> None:
    pool = make_pool("mlp", dtype=stored)
    merged = RunContext().merge_matrices(pool, Linear((0.0,) * 3))
    live = LiveMerge(pool, merged, torch.device("cpu"), storage=storage)  # type: ignore[arg-type]
    live.merge(torch.zeros(3, live.columns))
    for leaf in live.leaves:
        vectors: Any = leaf.vectors
        assert vectors.base.dtype is stored
        expected = pool.reference.tensor(leaf.names[0]).float()
        torch.testing.assert_close(leaf.parameter.detach(), expected, rtol=0, atol=0)
