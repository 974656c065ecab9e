"""Checks of an algorithm next to other installed stages: pipelines of two keep what one keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar
from zlib import crc32

from fusion_core.contracts.specs import STAGES, AlgorithmSpec
from fusion_core.errors import RecipeError
from fusion_core.plugins.manager import load_plugins
from fusion_core.plugins.ownership import distribution_of
from fusion_core.weights import Cut
from fusion_testing._bench import turned, with_sources
from fusion_testing._compare import differing_bytes, differing_values
from fusion_testing._sources import recut
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_testing._bench import Bench

#: Of a tensor's largest entry: what computing in another order may change, twice over.
_ROUNDING = 4e-5


class PairChecks:
    """Part of the `AlgorithmSuite`: with installed stages, each with its default options."""

    #: whether to try all partners; by default one per kind of stage, which the name determines
    every_partner: ClassVar[bool] = False
    #: a pipeline, as `--algo` names it, whose result the experts alone do not determine -> why
    undetermined: ClassVar[Mapping[str, str]] = {}

    def test_it_goes_with_other_stages(self, bench: Bench) -> None:
        """Two stages keep what one does: the same bytes however they are run, and identities."""
        for partner, pair in pairs(bench, every=self.every_partner):
            alike = not (bench.spec.ordered or partner.ordered)
            determined = _as_flag(bench.spec, partner) not in self.undetermined
            _check_pair(pair, partner.name, any_order=alike and determined)


def _check_pair(pair: Bench, partner: str, *, any_order: bool) -> None:
    pool = pair.pool("mlp")
    merged = pair.merge(pool)
    whole = with_sources(pool, lambda source: recut(source, Cut.TENSOR))
    if found := differing_bytes(merged, pair.merge(whole, executor="threads", workers=3)):
        fail(
            f"beside {partner!r} the merge depends on how it is cut or run: {found}.",
            "Compute the same bytes for the same element however a piece is cut.",
        )
    copies = pair.pool("mlp", spread=0.0)
    reference = copies.reference.state_dict() if pair.keeps_tensors(copies) else pair.merge(copies)
    if found := differing_values(pair.merge(copies), reference, tolerance=_ROUNDING):
        fail(
            f"beside {partner!r}, merging copies of one model changed it: {found}.",
            "Make nothing of task vectors that are zero.",
        )
    other = pair.merge(turned(pool)) if any_order else merged
    if found := differing_values(other, merged, tolerance=_ROUNDING):
        fail(
            f"beside {partner!r} the merge depends on the experts' order: {found}.",
            "Treat all experts alike, or say ordered=True in the spec; a pipeline whose answer is "
            "not unique stands in `undetermined`, with the reason.",
        )


def _as_flag(*specs: AlgorithmSpec) -> str:
    """Return two stages as `--algo` names them."""
    order = list(STAGES)
    return ",".join(spec.name for spec in sorted(specs, key=lambda spec: order.index(spec.stage)))


def pairs(bench: Bench, *, every: bool = True) -> Iterator[tuple[AlgorithmSpec, Bench]]:
    """Pair an algorithm with installed stages that need no options and no tasks.

    `every` pairs it with all of them, otherwise with one of each kind. The choice depends on the
    names alone. If both are fusion-core's own, the merge leaves the pair to the other's suite.
    """
    chosen: set[str] = set()
    components = [
        each for each in load_plugins().components(AlgorithmSpec) if _fits(bench, each.spec)
    ]
    for component in sorted(components, key=lambda each: _order(bench.spec, each.spec)):
        spec = component.spec
        if spec.stage in chosen and not every:
            continue
        try:
            stage = component.load_class()(component.load_config()())
        except RecipeError:  # an option is required
            continue
        experts = min(bench.experts, spec.max_experts or bench.experts)
        pair = replace(bench, partner=stage, experts=experts)
        if "calibrate" in (bench.spec.stage, spec.stage) and not pair.keeps_tensors(
            pair.pool("mlp")
        ):
            continue
        chosen.add(spec.stage)
        yield spec, pair


def _fits(bench: Bench, spec: AlgorithmSpec) -> bool:
    if bench.spec.stage == "merge" and _is_known(bench.spec) and _is_known(spec):
        return False
    if spec.needs_tasks != "none" or (spec.needs_task and bench.spec.needs_task):
        return False
    is_pipeline = (bench.spec.stage, spec.stage).count("merge") == 1
    return is_pipeline and min(bench.experts, spec.max_experts or bench.experts) >= spec.min_experts


def _order(one: AlgorithmSpec, other: AlgorithmSpec) -> int:
    return crc32(f"{one.name},{other.name}".encode())


def _is_known(spec: AlgorithmSpec) -> bool:
    return distribution_of([spec.kind], spec.name) is not None
