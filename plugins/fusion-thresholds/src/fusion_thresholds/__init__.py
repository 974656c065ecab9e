"""Exact thresholds and elected signs of task vectors, found by streaming over the weights.

The library has the statistics that methods on signs and sparsity share: the k-th largest magnitude
over a tensor or a model, trimming to a density, and the sign that the experts elect.
"""

from fusion_thresholds.selection import kth_largest_magnitudes
from fusion_thresholds.trimming import (
    ElectKernel,
    TrimKernel,
    TrimSurvey,
    agreeing_magnitudes,
    count_for_density,
    elect_sign,
    largest_by_rank,
)

__all__ = [
    "ElectKernel",
    "TrimKernel",
    "TrimSurvey",
    "agreeing_magnitudes",
    "count_for_density",
    "elect_sign",
    "kth_largest_magnitudes",
    "largest_by_rank",
]
