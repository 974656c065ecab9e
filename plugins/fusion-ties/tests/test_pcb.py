"""PCB-Merging against the authors' definition on whole vectors, by sorting."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion_core import merge
from fusion_ties.pcb import Pcb

State = dict[str, torch.Tensor]
SHAPES: dict[str, tuple[int, ...]] = {"m": (43, 17), "v": (290,), "s": (), "e": (0, 3)}


def models(seed: int, experts: int = 3, apart: float = 1.0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)

    def state() -> State:
        return {n: torch.randn(s, generator=draw, dtype=torch.float64) for n, s in SHAPES.items()}

    base, common = state(), state()
    experts_by_name = {
        f"e{n}": {k: base[k] + 0.05 * (common[k] + apart * v) for k, v in state().items()}
        for n in range(experts)
    }
    return {"base": base, "models": experts_by_name}


def flat(state: State) -> torch.Tensor:
    return torch.cat([values.flatten() for values in state.values()])


def to_unit_range(values: torch.Tensor) -> torch.Tensor:
    low, high = values.min(), values.max()
    return (values - low) / (high - low)


def dense(pool: dict[str, Any], density: float, clip: float, factors: list[float]) -> torch.Tensor:
    base = flat(pool["base"])
    tasks = [flat(model) - base for model in pool["models"].values()]
    total, count = sum(tasks), len(base)
    numerator, divisor = torch.zeros_like(base), torch.zeros_like(base)
    for task, factor in zip(tasks, factors, strict=True):
        ordered = task.abs().sort().values
        low, high = ordered[int(count * clip)], ordered[int(count * (1 - clip) - 1)]
        magnitudes = task.abs().clamp(low, high)
        balance = torch.exp(len(tasks) * to_unit_range(magnitudes) ** 2) * torch.tanh(task * total)
        share = to_unit_range(balance.clamp(min=balance.sort().values[int(count * (1 - density))]))
        numerator += factor * task.sign() * magnitudes * share
        divisor += share
    return base + numerator / divisor.clamp(min=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("clip", [0.0001, 0.01, 0.2])
@pytest.mark.parametrize("density", [0.01, 0.1, 0.95, 1.0])
def test_pcb_equals_the_authors_definition(density: float, clip: float, seed: int) -> None:
    """Above a density of about 0.6 the threshold is a negative balance."""
    pool = models(seed, apart=3.0)
    factors = [1.2, 1.0, 0.8]
    merged = merge(Pcb(density=density, clip=clip, weights=factors), pool)
    expected = dense(pool, density, clip, factors)
    torch.testing.assert_close(flat(merged.state_dict()), expected, rtol=1e-9, atol=1e-12)


def test_scale_multiplies_the_merged_task_vector() -> None:
    pool = models(2)
    base = flat(pool["base"])
    full, half = (flat(merge(Pcb(scale=s), pool).state_dict()) - base for s in (1.0, 0.5))
    torch.testing.assert_close(0.5 * full, half)


def test_experts_with_equal_entries_take_no_part() -> None:
    base = {"w": torch.zeros(5)}
    pool = {"base": base, "models": {n: {"w": torch.ones(5)} for n in ("a", "b")}}
    assert torch.equal(merge(Pcb(), pool).tensor("w"), base["w"])
