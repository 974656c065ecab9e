"""Checks on degenerate task vectors: zero, of rank one, opposite to each other, tiny or huge.

Most of these are common in practice: an adapter leaves some matrices unchanged and changes the
others with a low rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core.weights import StateDictSource
from fusion_testing._bench import with_base, with_experts
from fusion_testing._compare import differing_values
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_testing._bench import Bench, State

    #: task vectors of one tensor, shape (experts, ...) -> degenerate ones of the same shape
    Pattern = Callable[[Tensor], Tensor]

#: A merged tensor may be this many times further from the base than the furthest expert.
_MAX_DISTANCE = 1000
#: Largest change by another order of summation, relative to a tensor's largest entry.
_ROUNDING = 2e-5
_FACTOR = 2.0**20
_MATRIX = 2


def _unchanged_first(rows: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(rows[:1]), rows[1:]])


def _changed_by_the_last(rows: Tensor) -> Tensor:
    last = rows[-1]
    if last.dim() == _MATRIX:
        last = last[:, :2] @ last[:2]  # the rank of an adapter
    return torch.cat([torch.zeros_like(rows[:-1]), last[None]])


def _opposite(rows: Tensor) -> Tensor:
    pair = torch.cat([rows[:1], -rows[:1]])[: len(rows)]
    return torch.cat([pair, torch.zeros_like(rows[2:])])


def _changed_in_one_entry(rows: Tensor) -> Tensor:
    mask = torch.zeros_like(rows)
    mask.flatten(1)[:, 0] = 1
    return rows * mask


_PATTERNS: Mapping[str, Pattern] = {
    "unchanged by the first expert": _unchanged_first,
    "changed by the last expert alone": _changed_by_the_last,
    "changed by nobody": torch.zeros_like,
    "changed alike by all": lambda rows: rows[:1].expand_as(rows),
    "changed by opposite amounts": _opposite,
    "changed in one entry": _changed_in_one_entry,
    "of rank one": lambda rows: rows[:, :, :1] * rows[:, :1, :],
}
_SHAPES = {"of one entry": (1, 1), "of one row": (1, 8), "of one column": (8, 1)}


class DegenerateChecks:
    """Checks on degenerate task vectors; part of `AlgorithmSuite`."""

    def test_degenerate_task_vectors_stay_bounded(self, bench: Bench) -> None:
        """A merge does not explode where experts leave tensors unchanged."""
        pool = _patchwork(bench, bench.pool("mlp"))
        bench.skip_unless_tensors_match(pool)
        _check_bounded(bench, pool)
        _check_bounded(bench, _patchwork(bench, bench.pool("mlp"), unchanged="all of the first"))
        if bench.spec.min_experts == 1 and bench.spec.needs_tasks == "none":
            _check_bounded(bench, _patchwork(bench, bench.pool("mlp", experts=1)))

    def test_the_numbering_of_rows_and_columns_does_not_matter(self, bench: Bench) -> None:
        """Task vectors of low rank, permuted alike, give the same merge, permuted."""
        pool = _low_rank(bench.pool("mlp"))
        bench.skip_unless_tensors_match(pool)
        if bench.spec.needs_tasks != "none":
            pytest.skip("the method needs tasks, and a permuted model computes something else")
        base, experts = _states(pool)
        permuted = {name: _permuted(state) for name, state in experts.items()}
        merged = bench.merge(_with_states(pool, _permuted(base), permuted))
        expected = _permuted(bench.merge(pool))
        if difference := differing_values(merged, expected, tolerance=_ROUNDING):
            fail(
                "expected models with permuted rows and columns to give the same merge, permuted, "
                f"but it differs in {difference}.",
                "Where a task vector has a low rank, drop the components whose singular value is "
                "zero: their vectors are arbitrary. If results depend on positions by definition, "
                "as with random numbers, declare this check in expected_failures.",
            )

    @pytest.mark.parametrize("size", [2.0**-40, 2.0**40], ids=["tiny", "huge"])
    def test_task_vectors_of_any_size_stay_bounded(self, bench: Bench, size: float) -> None:
        """Tiny task vectors cause tiny changes; huge ones do not overflow."""
        _skip_unless_scalable(bench)
        _check_bounded(bench, _from_zero(bench, size))

    def test_larger_task_vectors_give_the_same_merge_enlarged(self, bench: Bench) -> None:
        """Task vectors times 2^20 give the merged task vector times 2^20."""
        _skip_unless_scalable(bench)
        merged = bench.merge(_from_zero(bench, 1.0))
        enlarged = bench.merge(_from_zero(bench, _FACTOR))
        reduced = {name: values / _FACTOR for name, values in enlarged.items()}
        if difference := differing_values(reduced, merged, tolerance=_ROUNDING):
            fail(
                "expected 2^20 times larger task vectors to give a 2^20 times larger merged one, "
                f"but it differs in {difference}.",
                "Bound divisors relative to their dividends, not by a constant. If the method "
                "depends on the scale by definition, declare this check in expected_failures.",
            )


def _patchwork(bench: Bench, pool: ModelPool[Any], *, unchanged: str = "") -> ModelPool[Any]:
    """Return a pool with degenerate task vectors.

    It has one more tensor per pattern and shape. With tasks, which need a live model, its own
    tensors take the patterns instead.
    """
    base, experts = _states(pool)
    if bench.spec.needs_tasks == "none":
        draw = torch.Generator().manual_seed(11)
        shapes = {**dict.fromkeys(_PATTERNS, (6, 5)), **_SHAPES}
        for name, shape in shapes.items():
            for state in (base, *experts.values()):
                state[name] = torch.randn(shape, generator=draw)
    for position, (name, values) in enumerate(base.items()):
        if not values.is_floating_point():
            continue
        patterns = [*_PATTERNS.values()]
        pattern = _PATTERNS.get(name, patterns[position % 2])
        rows = torch.stack([state[name] - values for state in experts.values()])
        rows = _unchanged_first(rows) if unchanged else rows if name in _SHAPES else pattern(rows)
        for state, row in zip(experts.values(), rows, strict=True):
            state[name] = values + row
    return _with_states(pool, base, experts)


def _low_rank(pool: ModelPool[Any]) -> ModelPool[Any]:
    """Return a pool whose task vectors have matrices of rank two, as adapters have."""
    base, experts = _states(pool)
    for state in experts.values():
        for name, values in state.items():
            if values.is_floating_point() and values.dim() >= _MATRIX:
                row = values - base[name]
                state[name] = base[name] + row[..., :2] @ row[..., :2, :]
    return _with_states(pool, base, experts)


def _from_zero(bench: Bench, size: float) -> ModelPool[Any]:
    """Return a pool whose base is zero, so that scaling task vectors is exact."""
    pool = bench.pool("mlp")
    base, experts = _states(pool)
    moved = {
        expert: {name: (values - base[name]) * size for name, values in state.items()}
        for expert, state in experts.items()
    }
    return _with_states(pool, {name: values * 0 for name, values in base.items()}, moved)


def _permuted(state: State) -> State:
    """Permute every axis of every matrix and vector; axes of equal length alike."""
    permuted = dict(state)
    for name, values in state.items():
        for axis, length in enumerate(values.shape):
            order = torch.randperm(length, generator=torch.Generator().manual_seed(length))
            permuted[name] = permuted[name].index_select(axis, order)
    return permuted


def _states(pool: ModelPool[Any]) -> tuple[State, dict[str, State]]:
    experts = {name: dict(source.state_dict()) for name, source in pool.experts.items()}
    return dict(pool.reference.state_dict()), experts


def _with_states(pool: ModelPool[Any], base: State, experts: Mapping[str, State]) -> ModelPool[Any]:
    sources = {name: StateDictSource(state) for name, state in experts.items()}
    return with_base(with_experts(pool, sources), StateDictSource(base))


def _check_bounded(bench: Bench, pool: ModelPool[Any]) -> None:
    base, experts = _states(pool)
    for name, merged in bench.merge(pool).items():
        if not merged.is_floating_point() or not merged.numel():
            continue
        start = base[name].double()
        largest = max(
            float((expert[name].double() - start).abs().max()) for expert in experts.values()
        )
        distance = float((merged.double() - start).abs().max())
        rounding = _ROUNDING * float(start.abs().max())
        if not distance <= _MAX_DISTANCE * largest + rounding:  # also true for NaN
            fail(
                f"the merge moves tensor {name!r} by {distance:.2g} from the base; the furthest "
                f"expert is {largest:.2g} away, so at most {_MAX_DISTANCE * largest:.2g} is "
                "expected.",
                "Let a task vector of zero contribute nothing. Bound divisors such as norms and "
                "traces relative to their dividends. If the method moves that far by definition, "
                "declare this check in expected_failures.",
            )


def _skip_unless_scalable(bench: Bench) -> None:
    if bench.spec.needs_tasks != "none":
        pytest.skip("the method needs tasks, and live models of this scale cannot be measured")
    bench.skip_unless_tensors_match(bench.pool("mlp"))
