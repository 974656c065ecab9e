"""Measure a pool's weights: lengths, angles, signs and ranks of task vectors."""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fusion_core.weights import Linear, MergedSource, Operands
from fusion_report.diagnosis.figures import Expert, Figures, Part
from fusion_report.diagnosis.kinds import read_architecture
from fusion_report.diagnosis.ranks import effective_ranks
from fusion_report.diagnosis.signs import conflicts
from fusion_report.vectors import merged_infos, read_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core import ModelPool, Progress, WeightSource
    from fusion_report.vectors import TaskVectors


def measure_weights(pool: ModelPool[Any], progress: Progress) -> Figures:
    """Return the figures of an aligned pool's weights.

    Without a base, task vectors are taken from the experts' mean. The matrices that tensors hold
    are looked at one by one, as methods do. Weights are read block by block,
    several times, in memory that does not grow with the models.
    """
    unpack = pool.layout.unpack
    sources = {name: unpack(expert) for name, expert in pool.experts.items()}
    operands = Operands(unpack(_origin(pool)), sources)
    vectors = read_vectors(operands, progress)
    with progress.track("compare signs", total=1) as advance:
        signs = conflicts(operands)
        advance(1)
    ranks = effective_ranks(operands, progress)
    rows = zip(
        vectors.experts,
        vectors.norms,
        signs.changed,
        ranks.ranks,
        ranks.shares,
        ranks.numerical_shares,
        strict=True,
    )
    experts = {
        name: Expert(pool.task_of(name), norm, _quotient(norm, vectors.base_norm), *others)
        for name, norm, *others in rows
    }
    return Figures(
        experts,
        pool.base is not None,
        sum(info.numel for info in merged_infos(operands)),
        vectors.cosines,
        _quotient(vectors.norm_of_sum, fmean(vectors.norms)),
        signs.conflict,
        signs.opposed,
        _parts(vectors),
        ranks.matrices,
        ranks.is_sampled,
        architecture=read_architecture(pool),
    )


def _origin(pool: ModelPool[Any]) -> WeightSource:
    """Return what task vectors start from: the base or, without one, the experts' mean."""
    if pool.base is not None:
        return pool.base
    count = len(pool.experts)
    return MergedSource(Linear((1 / count,) * count, relative=False), Operands(None, pool.experts))


def _parts(vectors: TaskVectors) -> dict[str, Part]:
    base = vectors.base_norm_by_part
    return {
        part: Part(_quotient(_root_mean_square(norms), base[part]), vectors.mean_cosine(part))
        for part, norms in vectors.norms_by_part.items()
    }


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(fmean(value**2 for value in values))


def _quotient(value: float, whole: float) -> float:
    return value / whole if whole else math.nan
