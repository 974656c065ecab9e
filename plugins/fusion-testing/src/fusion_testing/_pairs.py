"""Checks of an algorithm beside every stage that is installed: two-stage pipelines keep it all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from fusion_core.contracts.specs import STAGES, AlgorithmSpec
from fusion_core.errors import RecipeError
from fusion_core.plugins.known import home_of
from fusion_core.plugins.manager import load_plugins
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
    """Part of the `AlgorithmSuite`: with what is installed, each with its default options."""

    #: a pipeline, as `--algo` names it, whose result the experts alone do not determine -> why
    undetermined: ClassVar[Mapping[str, str]] = {}

    def test_it_goes_with_every_stage_that_is_installed(self, bench: Bench) -> None:
        """Two stages keep what one does: the same bytes however they are run, and identities."""
        for partner, pair in pairs(bench):
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


def pairs(bench: Bench) -> Iterator[tuple[AlgorithmSpec, Bench]]:
    """Pair an algorithm with every installed stage that needs no options and no tasks.

    Where both are fusion-core's own, the merge leaves the pair to the other's suite.
    """
    for component in load_plugins().components(AlgorithmSpec):
        spec = component.spec
        if bench.spec.stage == "merge" and _is_known(bench.spec) and _is_known(spec):
            continue
        most = min(bench.experts, spec.max_experts or bench.experts)
        stages = (bench.spec.stage, spec.stage)
        fits = stages.count("merge") == 1 and spec.needs_tasks == "none"
        fits = fits and not (spec.needs_task and bench.spec.needs_task)
        if fits and most >= spec.min_experts:
            try:
                stage = component.load_class()(component.load_config()())
            except RecipeError:  # an option is required
                continue
            pair = replace(bench, partner=stage, experts=most)
            if "calibrate" not in stages or pair.keeps_tensors(pair.pool("mlp")):
                yield spec, pair


def _is_known(spec: AlgorithmSpec) -> bool:
    return home_of([spec.kind], spec.name) is not None
