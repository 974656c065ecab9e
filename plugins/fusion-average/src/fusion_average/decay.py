"""Weights of checkpoints that correspond to a decay of the learning rate, or to an EMA."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fusion_average.config import Schedule

#: The integral from 0 to u of each decay curve D, which falls from D(0) = 1 to D(1) = 0.
_INTEGRALS: dict[Schedule, Callable[[float], float]] = {
    "linear": lambda u: u - u * u / 2,
    "cosine": lambda u: u / 2 + math.sin(math.pi * u) / (2 * math.pi),
    "1-sqrt": lambda u: u - 2 / 3 * u**1.5,
}


def decay_weights(steps: Sequence[int], schedule: Schedule) -> list[float]:
    """Return the weights of checkpoints whose average emulates a decay of the learning rate.

    Let W_0, ..., W_n be checkpoints at the steps t_0 < ... < t_n of a run with a constant learning
    rate. A run that decays the learning rate by D from t_0 to t_n makes, to first order, the same
    updates times the decay factors. With d_j the mean of D over (t_{j-1}, t_j), it ends in

        W_0 + sum over j >= 1 of d_j (W_j - W_{j-1}) = sum of c_j W_j,
        c_0 = 1 - d_1,  c_j = d_j - d_{j+1},  c_n = d_n.

    The weights are the differences of the decay factors (WSM, arXiv:2507.17634, which samples D
    where this function integrates it). They are positive and sum to 1. The equation is exact if
    the gradient does not depend on the weights. `constant` gives equal weights: over even steps,
    those of a linear decay that begins half an interval before t_0 and ends half an interval after
    t_n. A linear decay from t_0 to t_n gives both ends half the weight of the others.

    `steps` increase. Uneven steps are taken into account.
    """
    count = len(steps)
    if schedule == "constant" or count == 1:
        return [1 / count] * count
    integral = _INTEGRALS[schedule]
    length = steps[-1] - steps[0]
    places = [(step - steps[0]) / length for step in steps]
    factors = [
        (integral(stop) - integral(start)) / (stop - start) for start, stop in pairwise(places)
    ]
    return [before - after for before, after in pairwise([1.0, *factors, 0.0])]


def ema_weights(count: int, factor: float) -> list[float]:
    """Return the weights of an exponential moving average over checkpoints, oldest first.

    M_0 = W_0 and M_j = factor * W_j + (1 - factor) * M_{j-1} (arXiv:2505.12082).
    """
    remaining = [(1 - factor) ** age for age in reversed(range(count))]
    return [remaining[0], *(factor * share for share in remaining[1:])]
