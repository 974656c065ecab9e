"""Checks of an algorithm beside every stage that is installed: two-stage pipelines keep it all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fusion_core.contracts.specs import AlgorithmSpec
from fusion_core.errors import RecipeError
from fusion_core.plugins.manager import load_plugins
from fusion_core.testing._bench import with_experts, with_sources
from fusion_core.testing._compare import differing_bytes, differing_values
from fusion_core.testing._sources import recut
from fusion_core.testing._suite import fail
from fusion_core.weights import Cut

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion_core.testing._bench import Bench

#: Of a tensor's largest entry: what computing in another order may change, twice over.
_ROUNDING = 2e-4
_PARTNERS = {"transform": {"merge"}, "calibrate": {"merge"}, "merge": {"transform", "calibrate"}}


class PairChecks:
    """Part of the `AlgorithmSuite`: with what is installed, each with its default options."""

    def test_pairs_give_the_same_bytes_however_they_are_run(self, bench: Bench) -> None:
        """On one thread or on three, cut between elements or not at all."""
        for partner, pair in pairs(bench):
            pool = pair.pool("mlp")
            whole = with_sources(pool, lambda source: recut(source, Cut.TENSOR))
            found = differing_bytes(
                pair.merge(pool), pair.merge(whole, executor="threads", workers=3)
            )
            if found:
                fail(
                    f"beside {partner.name!r} the merge depends on how it is cut or run: {found}.",
                    "Compute the same bytes for the same element however a piece is cut.",
                )

    def test_pairs_keep_equal_models(self, bench: Bench) -> None:
        """Where all task vectors are zero, two stages have nothing to do."""
        for partner, pair in pairs(bench):
            pool = pair.pool("mlp", spread=0.0)
            reference = pool.reference.state_dict()
            found = differing_values(pair.merge(pool), reference, tolerance=_ROUNDING)
            if found:
                fail(
                    f"beside {partner.name!r}, merging copies of one model changed it: {found}.",
                    "Make nothing of task vectors that are zero.",
                )

    def test_pairs_treat_experts_alike(self, bench: Bench) -> None:
        """Experts in another order give the same merge, unless a stage says that they do not."""
        if bench.spec.ordered:
            pytest.skip("its spec says that the experts' order matters")
        for partner, pair in pairs(bench):
            if partner.ordered:
                continue
            pool = pair.pool("mlp")
            turned = {name: pool.experts[name] for name in reversed(list(pool.experts))}
            found = differing_values(
                pair.merge(with_experts(pool, turned)), pair.merge(pool), tolerance=_ROUNDING
            )
            if found:
                fail(
                    f"beside {partner.name!r} the merge depends on the experts' order: {found}.",
                    "Treat all experts alike, or say ordered=True in the spec.",
                )


def pairs(bench: Bench) -> Iterator[tuple[AlgorithmSpec, Bench]]:
    """Pair an algorithm with every installed stage that needs no options and no tasks."""
    for component in load_plugins().components(AlgorithmSpec):
        spec = component.spec
        most = min(bench.experts, spec.max_experts or bench.experts)
        fits = spec.stage in _PARTNERS[bench.spec.stage] and spec.needs_tasks == "none"
        if fits and most >= spec.min_experts:
            try:
                stage = component.load_class()(component.load_config()())
            except RecipeError:  # an option is required
                continue
            yield spec, replace(bench, partner=stage, experts=most)
