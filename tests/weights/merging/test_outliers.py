"""Merged entries that lie too far from the base are refused, whatever computed them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core import Algorithm, ComponentConfig, TensorwiseAlgorithm, Transform, run_fusion
from fusion_core.errors import WeightsError
from fusion_core.weights import (
    Kernel,
    Linear,
    MergedSource,
    Operands,
    StateDictSource,
    source,
    sum_in_order,
)
from fusion_core.weights.merging.piece import Bound

if TYPE_CHECKING:
    from fusion_core import Piece

ENTRIES = 40


class Config(ComponentConfig):
    factor: float = 1.0
    entry: int = 0


class Spike(TensorwiseAlgorithm[Config]):
    """The sum of the task vectors, with one entry multiplied."""

    config_class = Config

    def merge(self, piece: Piece) -> torch.Tensor:
        total = sum_in_order(piece.task_vectors)
        if piece.start <= self.config.entry < piece.stop:
            total[self.config.entry - piece.start] *= self.config.factor
        return piece.base + total


class SpikedTransform(Transform[Config]):
    config_class = Config

    def rows(self, piece: Piece) -> torch.Tensor:
        return piece.task_vectors * self.config.factor


class Eager(Algorithm[Config]):
    """A method that computes the weights itself."""

    config_class = Config

    def run(self, pool: Any, context: Any) -> StateDictSource:
        del context
        base, expert = pool.base.state_dict(), pool.experts["a"].state_dict()
        moved = {name: (expert[name] - base[name]) * self.config.factor for name in base}
        return StateDictSource({name: base[name] + moved[name] for name in base}, label="eager")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BLOCK", 8)


@pytest.fixture
def pool() -> dict[str, Any]:
    base = {"w": torch.ones(ENTRIES)}
    step = torch.linspace(0, 1e-3, ENTRIES)
    return {"base": base, "models": {"a": {"w": 1 + step}, "b": {"w": 1 - step / 2}}}


def run(algorithm: Any, pool: Any, **recipe: Any) -> Any:
    return run_fusion(recipe, algorithm=algorithm, model_pool=pool)


@pytest.mark.parametrize("entry", [1, ENTRIES - 1])
def test_one_entry_beyond_the_bound_is_refused_in_any_piece(pool: Any, entry: int) -> None:
    # By the largest task-vector entry of the whole tensor, which lies in its last piece.
    step = 1e-3 * entry / (ENTRIES - 1) / 2
    run(Spike(factor=0.9 / step, entry=entry), pool)
    with pytest.raises(WeightsError, match=r"Spike|fused") as refused:
        run(Spike(factor=1.2 / step, entry=entry), pool)
    assert "'w'" in str(refused.value)
    assert "alignment.outliers" in str(refused.value.hint)
    run(Spike(factor=1.2 / step, entry=entry), pool, alignment={"outliers": "allow"})


@pytest.mark.parametrize("algorithm", [Eager, SpikedTransform])
def test_computed_weights_and_transforms_are_checked(pool: Any, algorithm: Any) -> None:
    def stages(factor: float) -> Any:
        stage = algorithm(factor=factor)
        return [stage, Spike()] if isinstance(stage, Transform) else stage

    run(stages(900), pool)
    with pytest.raises(WeightsError, match="'w'"):
        run(stages(1100), pool)


def test_an_unchanged_tensor_may_only_move_by_rounding(pool: Any) -> None:
    class Shift(Spike):
        def merge(self, piece: Piece) -> torch.Tensor:
            return piece.base + self.config.factor

    pool["models"] = dict.fromkeys("ab", pool["base"])
    run(Shift(factor=1e-6), pool)
    with pytest.raises(WeightsError, match="'w'"):
        run(Shift(factor=1e-3), pool)


def test_a_result_in_a_narrow_dtype_may_move_by_its_rounding(pool: Any) -> None:
    class Narrow(Eager):
        def run(self, pool: Any, context: Any) -> StateDictSource:
            moved = super().run(pool, context).state_dict()
            return StateDictSource({name: tensor.bfloat16() for name, tensor in moved.items()})

    pool["base"]["w"] += 1 / 3  # which bf16 rounds
    pool["models"] = dict.fromkeys("ab", pool["base"])
    assert run(Narrow(), pool).weights.tensor("w").dtype is torch.float32
    pool["models"]["b"] = {"w": pool["base"]["w"] + 1e-6}
    with pytest.raises(WeightsError, match="'w'"):
        run(Narrow(factor=1e5), {**pool, "models": {"a": pool["models"]["b"]}})


def test_a_method_that_fits_data_may_move_a_tensor_that_no_expert_changed(pool: Any) -> None:
    def merge(bound: Bound) -> dict[str, torch.Tensor]:
        sources = {name: StateDictSource(state) for name, state in pool["models"].items()}
        operands = Operands(StateDictSource(pool["base"]), sources, bound=bound)
        return MergedSource(Shift(), operands).state_dict()

    class Shift(Kernel):
        def merge(self, piece: Piece) -> torch.Tensor:
            return piece.base + 0.5

    for state in (pool["base"], *pool["models"].values()):
        state["first"] = torch.ones(ENTRIES)
    assert merge(Bound.MODEL)["first"].eq(1.5).all()
    with pytest.raises(WeightsError, match="'first'"):
        merge(Bound.TENSOR)
    for state in pool["models"].values():
        state["w"] = pool["base"]["w"] + 1e-4
    with pytest.raises(WeightsError, match=r"any task vector is 0\.1"):
        merge(Bound.MODEL)


@pytest.mark.parametrize(
    ("coefficients", "bounded"),
    [
        ((500.0, -400.0), True),
        ((500.0, -600.0), False),
        ({"w": (900.0, 0.0), "v": (0.0, 1001.0)}, False),
        ({"w": torch.full((2, 4, 1), 499.0)}, True),
        ({"w": torch.full((2, 4, 1), -501.0)}, False),
    ],
)
def test_a_linear_merge_is_bounded_by_its_coefficients(coefficients: Any, *, bounded: bool) -> None:
    assert Linear(coefficients).is_bounded is bounded
