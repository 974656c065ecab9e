"""Measure a pool's weights: norms, cosines, signs and ranks of task vectors."""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fusion_core.weights import Linear, MergedSource, Operands
from fusion_report.diagnosis.figures import Expert, Figures, Mixture, Part
from fusion_report.diagnosis.kinds import read_architecture
from fusion_report.diagnosis.ranks import measure_ranks
from fusion_report.diagnosis.signs import measure_signs
from fusion_report.vectors import measure_cosine, merged_infos, read_vectors
from pools_checkpoints import find_routers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core import ModelPool, Progress, WeightSource
    from fusion_report.vectors import TaskVectors


def measure_weights(pool: ModelPool[Any], progress: Progress) -> Figures:
    """Measure the weights of an aligned pool.

    Without a base, task vectors are differences from the experts' mean. Stacked matrices are
    measured one by one, as methods merge them. Weights are read several times in blocks, so memory
    does not grow with the models.
    """
    unpack = pool.layout.unpack
    sources = {name: unpack(expert) for name, expert in pool.experts.items()}
    operands = Operands(unpack(_origin(pool)), sources)
    vectors = read_vectors(operands, progress)
    with progress.track("compare signs", total=1) as advance:
        signs = measure_signs(operands)
        advance(1)
    ranks = measure_ranks(operands, progress)
    rows = zip(
        vectors.experts,
        vectors.norms,
        signs.changed,
        ranks.ranks,
        ranks.shares,
        ranks.numerical_shares,
        signs.density,
        strict=True,
    )
    experts = {
        name: Expert(pool.task_of(name), norm, _ratio(norm, vectors.base_norm), *rest)
        for name, norm, *rest in rows
    }
    return Figures(
        experts,
        pool.base is not None,
        sum(info.numel for info in merged_infos(operands)),
        vectors.cosines,
        _ratio(vectors.norm_of_sum, fmean(vectors.norms)),
        signs.conflict,
        signs.opposed,
        _measure_parts(vectors),
        ranks.matrices,
        ranks.is_sampled,
        architecture=read_architecture(pool),
        mixture=_measure_mixture(pool, operands),
    )


def _origin(pool: ModelPool[Any]) -> WeightSource:
    """Return the origin of task vectors: the base or, without one, the experts' mean."""
    if pool.base is not None:
        return pool.base
    count = len(pool.experts)
    return MergedSource(Linear((1 / count,) * count, relative=False), Operands(None, pool.experts))


def _measure_mixture(pool: ModelPool[Any], operands: Operands) -> Mixture | None:
    infos = pool.reference.infos
    routers = find_routers(infos)
    if not routers:
        return None
    experts = [info.numel for name, info in infos.items() if ".experts." in f".{name}"]
    return Mixture(
        sum(experts) / sum(info.numel for info in infos.values()),
        measure_cosine(operands, routers),
        pool.treatments.keys().isdisjoint(routers),
    )


def _measure_parts(vectors: TaskVectors) -> dict[str, Part]:
    base = vectors.base_norm_by_part
    return {
        part: Part(_ratio(_root_mean_square(norms), base[part]), vectors.mean_cosine(part))
        for part, norms in vectors.norms_by_part.items()
    }


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(fmean(value**2 for value in values))


def _ratio(value: float, whole: float) -> float:
    return value / whole if whole else math.nan
