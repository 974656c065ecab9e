"""Checks of an algorithm in pipelines with other installed stages."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar
from zlib import crc32

from fusion_core.contracts.specs import STAGES, AlgorithmSpec
from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.plugins.manager import load_plugins
from fusion_core.plugins.ownership import distribution_of
from fusion_core.weights import Cut
from fusion_testing._bench import reverse_experts, with_sources
from fusion_testing._compare import differing_bytes, differing_values
from fusion_testing._sources import recut
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_testing._bench import Bench

#: Largest change by another order of computation in two stages, relative to the largest entry.
_ROUNDING = 4e-5


class PairChecks:
    """Checks in pipelines with other stages and their defaults; part of `AlgorithmSuite`."""

    #: whether to try all partners; default: one per kind of stage, chosen by the names
    every_partner: ClassVar[bool] = False
    #: pipelines, as `--algo` names them, that may depend on the order of experts -> reason
    undetermined: ClassVar[Mapping[str, str]] = {}

    def test_it_goes_with_other_stages(self, bench: Bench) -> None:
        """A pipeline of two stages passes the main checks of a single stage."""
        for partner, pair in pairs(bench, every=self.every_partner):
            alike = not (bench.spec.ordered or partner.ordered)
            determined = _as_flag(bench.spec, partner) not in self.undetermined
            _check_pair(pair, partner.name, any_order=alike and determined)


def _check_pair(pair: Bench, partner: str, *, any_order: bool) -> None:
    pool = pair.pool("mlp")
    merged = pair.merge(pool)
    whole = with_sources(pool, lambda source: recut(source, Cut.TENSOR))
    if difference := differing_bytes(merged, pair.merge(whole, executor="threads", workers=3)):
        fail(
            f"in a pipeline with {partner!r}, the merge depends on the cuts or the threads: "
            f"{difference}.",
            "Compute the same bytes for an element however tensors are cut into pieces.",
        )
    copies = pair.pool("mlp", spread=0.0)
    reference = copies.reference.state_dict() if pair.keeps_tensors(copies) else pair.merge(copies)
    if difference := differing_values(pair.merge(copies), reference, tolerance=_ROUNDING):
        fail(
            f"in a pipeline with {partner!r}, expected copies of one model to merge to that model, "
            f"but {difference} differs.",
            "Let task vectors of zero contribute nothing.",
        )
    other = pair.merge(reverse_experts(pool)) if any_order else merged
    if difference := differing_values(other, merged, tolerance=_ROUNDING):
        fail(
            f"in a pipeline with {partner!r}, the merge depends on the order of the experts: "
            f"{difference}.",
            "Treat all experts alike, or set ordered=True in the spec. If the pipeline has no "
            "unique result, declare it in `undetermined` with the reason.",
        )


def _as_flag(*specs: AlgorithmSpec) -> str:
    """Return two stages as `--algo` names them."""
    order = list(STAGES)
    return ",".join(spec.name for spec in sorted(specs, key=lambda spec: order.index(spec.stage)))


def pairs(bench: Bench, *, every: bool = True) -> Iterator[tuple[AlgorithmSpec, Bench]]:
    """Pair an algorithm with installed stages that need neither options nor tasks.

    With `every`, pair it with all of them, otherwise with one per kind of stage, chosen by names
    alone. A merge of fusion-core skips fusion-core's transforms and calibrations, whose suites test
    these pairs.
    """
    chosen: set[str] = set()
    components = [
        component
        for component in load_plugins().components(AlgorithmSpec)
        if _fits(bench, component.spec)
    ]
    for component in sorted(components, key=lambda other: _order(bench.spec, other.spec)):
        spec = component.spec
        if spec.stage in chosen and not every:
            continue
        try:
            stage = component.load_class()(component.load_config()())
        except RecipeError:  # an option is required
            continue
        experts = min(bench.experts, spec.max_experts or bench.experts)
        pair = replace(bench, partner=stage, experts=experts)
        if _needs_files(pair):
            continue
        if "calibrate" in (bench.spec.stage, spec.stage) and not pair.keeps_tensors(
            pair.pool("mlp")
        ):
            continue
        chosen.add(spec.stage)
        yield spec, pair


def _needs_files(pair: Bench) -> bool:
    """Tell whether the merge reads files of models besides weights: pools here have none."""
    try:
        pair.outline(pair.pool("mlp"))
    except CheckpointError:
        return True
    return False


def _fits(bench: Bench, spec: AlgorithmSpec) -> bool:
    if bench.spec.stage == "merge" and _is_known(bench.spec) and _is_known(spec):
        return False
    if spec.needs_tasks != "none" or (spec.needs_task and bench.spec.needs_task):
        return False
    if any(
        one.modules_file and other.stage != "merge"
        for one, other in ((bench.spec, spec), (spec, bench.spec))
    ):
        return False  # modules of live models are made last, from weights
    is_pipeline = (bench.spec.stage, spec.stage).count("merge") == 1
    return is_pipeline and min(bench.experts, spec.max_experts or bench.experts) >= spec.min_experts


def _order(one: AlgorithmSpec, other: AlgorithmSpec) -> int:
    return crc32(f"{one.name},{other.name}".encode())


def _is_known(spec: AlgorithmSpec) -> bool:
    return distribution_of([spec.kind], spec.name) is not None
