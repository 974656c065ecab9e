"""Weights that correspond to a decay of the learning rate."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_average.config import RunAverageConfig, Schedule
from fusion_average.decay import decay_weights, ema_weights
from fusion_average.run_average import RunAverage
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda u: 1 - u,
    "cosine": lambda u: (1 + math.cos(math.pi * u)) / 2,
    "1-sqrt": lambda u: 1 - math.sqrt(u),
}
Steps = st.lists(st.integers(0, 10**6), min_size=2, max_size=40, unique=True).map(sorted)


@pytest.mark.parametrize("schedule", CURVES)
def test_an_average_is_the_decayed_run_of_a_linear_model(schedule: Schedule) -> None:
    """SGD on a loss whose gradient differs from step to step, but not with the weights.

    Checkpoints are unevenly spaced. The gradients of an interval are equal, so the equation is
    exact up to the sampling of the curve: the decayed run takes the middle of each step.
    """
    steps = [1000, 1400, 1500, 2300, 3000]
    gradients = torch.randn(len(steps) - 1, 7, dtype=torch.float64)
    rate, length = 0.1, steps[-1] - steps[0]
    weights, decayed = torch.zeros(7).double(), torch.zeros(7).double()
    checkpoints = [weights]
    for (start, stop), gradient in zip(pairwise(steps), gradients, strict=True):
        weights = weights - rate * (stop - start) * gradient
        checkpoints.append(weights)
        for step in range(start, stop):
            decayed -= rate * CURVES[schedule]((step + 0.5 - steps[0]) / length) * gradient
    factors = torch.tensor(decay_weights(steps, schedule), dtype=torch.float64)
    average = (factors[:, None] * torch.stack(checkpoints)).sum(0)
    tolerance = 1e-12 if schedule == "linear" else 1e-4  # the middle is exact for a straight line
    assert (average - decayed).norm() < tolerance * decayed.norm()


def test_weights_by_hand() -> None:
    assert decay_weights([0, 1, 2], "linear") == pytest.approx([1 / 4, 1 / 2, 1 / 4])
    assert decay_weights([0, 1, 3], "linear") == pytest.approx([1 / 6, 1 / 2, 1 / 3])
    assert decay_weights([0, 4], "1-sqrt") == pytest.approx([2 / 3, 1 / 3])
    assert decay_weights([0, 5], "cosine") == pytest.approx([1 / 2, 1 / 2])
    assert decay_weights([7], "cosine") == [1.0]
    assert decay_weights([0, 1, 9], "constant") == pytest.approx([1 / 3] * 3)
    assert ema_weights(3, 0.2) == pytest.approx([0.64, 0.16, 0.2])


@settings(deadline=None)
@given(Steps, st.sampled_from(get_args(Schedule)), st.integers(1, 1000), st.integers(0, 1000))
def test_weights_are_a_decay_in_any_unit(
    steps: list[int], schedule: Schedule, scale: int, shift: int
) -> None:
    weights = decay_weights(steps, schedule)
    assert sum(weights) == pytest.approx(1)
    assert min(weights) > -1e-12
    factors = [1 - total for total in accumulate(weights)]  # of the intervals: they never rise
    assert all(after <= before + 1e-12 for before, after in pairwise([1.0, *factors]))
    moved = decay_weights([shift + scale * step for step in steps], schedule)
    assert moved == pytest.approx(weights, abs=1e-9)


@settings(deadline=None)
@given(st.integers(1, 50), st.floats(0.01, 1))
def test_ema_weights_are_those_of_the_recursion(count: int, factor: float) -> None:
    values = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    mean = values[0]
    for value in values[1:]:
        mean = factor * value + (1 - factor) * mean
    weights = torch.tensor(ema_weights(count, factor), dtype=torch.float64)
    assert float(weights @ values) == pytest.approx(float(mean), abs=1e-12)


@pytest.mark.parametrize(
    ("options", "names", "message"),
    [
        ({"schedule": "linear"}, ["step-1", "base"], "'base' has no step number"),
        ({"schedule": "linear"}, ["a-7", "b-07"], "a-7 and b-07 have the same step 7"),
        ({"ema": 0.5, "steps": [1]}, ["a", "b"], "has 1 entries for 2 models"),
        ({"ema": 0.5, "steps": [3, 3]}, ["a", "b"], "the same step 3"),
        ({"last": 3}, ["step-1", "step-2"], "last=3 averages 3 models, and there are 2"),
        ({"preset": "pma"}, ["step-1"], "preset pma averages 10 models"),
    ],
)
def test_steps_that_cannot_be_used(
    options: dict[str, object], names: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        RunAverage(RunAverageConfig(**options)).weights_of(names)


def test_models_are_weighted_by_their_steps_in_any_order() -> None:
    average = RunAverage(RunAverageConfig(ema=0.2, last=2))
    assert average.weights_of(["step-9", "step-100", "step-20"]) == pytest.approx(
        {"step-9": 0.0, "step-100": 0.2, "step-20": 0.8}
    )
    soup = RunAverage(RunAverageConfig(preset="soup"))
    assert soup.weights_of(["a", "b"]) == {"a": 0.5, "b": 0.5}
