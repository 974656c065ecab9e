"""Checks that an algorithm is a function of models, options and seed without side effects."""

from __future__ import annotations

import math
import pickle
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core.weights import Cut, MergedSource, RowsKernel
from fusion_core.weights.merging.piece import MERGED
from fusion_testing._bench import with_sources
from fusion_testing._compare import differing_bytes
from fusion_testing._guards import untouched_globals, untouched_modules
from fusion_testing._merging import on_every_model
from fusion_testing._sources import recut
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from fusion_core.weights import Piece, TensorInfo, WeightSource
    from fusion_core.weights.merging.kernels import AppliedKernel
    from fusion_testing._bench import Bench

#: Rows or elements per piece: a size that does not divide the tensors, and whole tensors.
_STEPS = (7, 10**9)


class DeterminismChecks:
    """Checks of determinism and side effects; part of `AlgorithmSuite`."""

    @on_every_model
    def test_the_seed_decides_everything(self, bench: Bench, model: str) -> None:
        """The same models, options and seed give the same bytes, also after other runs."""
        pool = bench.pool(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            first = bench.merge(pool)
            bench.merge(bench.pool("mlp", seed=5))
            torch.manual_seed(2)
            difference = differing_bytes(first, bench.merge(pool))
        if difference:
            fail(
                f"two runs with the same seed differ in {difference}.",
                "Draw random numbers from piece.uniform, or from a torch.Generator seeded with "
                "context.seed. Do not keep state in the algorithm between runs.",
            )

    @on_every_model
    @pytest.mark.parametrize("workers", [1, 3])
    def test_workers_do_not_matter(self, bench: Bench, model: str, workers: int) -> None:
        """The calling thread, one worker and several workers give the same bytes."""
        pool = bench.pool(model)
        threaded = bench.merge(pool, executor="threads", workers=workers)
        if difference := differing_bytes(bench.merge(pool), threaded):
            fail(
                f"the merge by {workers} worker(s) differs from the serial one in {difference}.",
                "Make `merge` a pure function of the piece: threads call it in any order. Keep no "
                "state in the algorithm.",
            )

    @on_every_model
    @pytest.mark.parametrize("cut", Cut, ids=lambda cut: cut.value)
    def test_cuts_do_not_matter(self, bench: Bench, model: str, cut: Cut) -> None:
        """The bytes do not depend on where the engine cuts tensors into pieces."""
        pool = bench.pool(model)
        recut_pool = with_sources(pool, lambda source: recut(source, cut))
        # A merge of its own for each: what one leaves in the algorithm must not serve the next.
        fresh = {step: replace(bench, algorithm=deepcopy(bench.algorithm)) for step in _STEPS}
        expected = bench.lazy(pool).state_dict()
        for step in _STEPS:
            coarse = fresh[step].lazy(recut_pool)
            if difference := differing_bytes(expected, _read_in_steps(coarse, step)):
                fail(
                    f"the merge depends on where tensors are cut: {difference} (operands cut by "
                    f"{cut.value}, pieces of {step}).",
                    "Sum over experts with sum_in_order, not with sum(dim=0) or mean(dim=0), whose "
                    "rounding depends on the piece's size. Compute statistics of whole tensors in "
                    "`survey`, or declare a coarser `cut`. Keep no state in the algorithm.",
                )

    def test_the_merge_can_be_sent_to_another_process(self, bench: Bench) -> None:
        """A lazy merge has the same bytes after pickling, so any executor can run it."""
        source = bench.lazy(bench.pool("mlp"))
        if not isinstance(source, MergedSource):
            pytest.skip("the algorithm does not return a lazy merge by a kernel")
        expected = source.state_dict()
        try:
            copy = pickle.loads(pickle.dumps(source))  # noqa: S301 - pickled on this line
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            fail(
                f"the merge cannot be pickled: {error}",
                "Store only numbers, names and tensors in kernels: no lambdas, open files or "
                "locks.",
            )
        if difference := differing_bytes(expected, copy.state_dict()):
            fail(
                f"pickling changes the merge: {difference}.",
                "Keep everything that `merge` reads in the kernel's picklable attributes.",
            )

    @on_every_model
    def test_the_models_are_not_changed(self, bench: Bench, model: str) -> None:
        """A merge does not change the values, gradients or modes of the user's live models."""
        pool = bench.pool(model)
        with untouched_modules(f"{bench.spec.name!r}", bench.modules(pool)):
            bench.merge(pool)

    @on_every_model
    def test_pieces_are_not_written_into(self, bench: Bench, model: str) -> None:
        """`merge` does not write into a piece, whose tensors other readers share."""
        kernels = bench.kernels_on(bench.pool(model))
        if not kernels:
            pytest.skip("the algorithm does not return a lazy merge by a kernel")
        for applied in kernels:
            for name, info in applied.infos.items():
                if info.dtype.is_floating_point:
                    _check_unwritten(applied, applied.piece(name, 0, info.numel))

    @on_every_model
    def test_global_state_is_not_changed(self, bench: Bench, model: str) -> None:
        """A merge does not change random numbers, the default dtype or the environment."""
        pool = bench.pool(model)
        bench.merge(pool)  # libraries may change global state on their first import
        with untouched_globals(f"{bench.spec.name!r}"):
            bench.merge(pool)

    def test_metrics_are_finite_and_steps_go_up(self, bench: Bench) -> None:
        """Logged metrics are finite, and their steps never decrease."""
        logged: list[tuple[int, Mapping[str, float]]] = []
        bench.lazy(bench.pool("mlp"), on_metrics=lambda *entry: logged.append(entry))
        steps = [step for step, _ in logged]
        if steps != sorted(steps):
            fail(f"context.log got decreasing steps: {steps}.", "Log with increasing steps.")
        for step, metrics in logged:
            for name, value in metrics.items():
                if not math.isfinite(value):
                    fail(
                        f"metric {name!r} is {value} at step {step}, expected a finite number.",
                        "Log finite numbers only.",
                    )


def _check_unwritten(applied: AppliedKernel[Any], piece: Piece) -> None:
    operands, kernel = applied.operands, applied.kernel
    parts = ["experts", *(["base", "task_vectors"] if operands.base is not None else [])]
    parts += [MERGED] if MERGED in operands.extras else []  # every access reads other extras again
    before = {part: getattr(piece, part).clone() for part in parts}
    if isinstance(kernel, RowsKernel):
        kernel.rows(piece)
    else:
        kernel.merge(piece)
    for part, values in before.items():
        if differing_bytes({part: getattr(piece, part)}, {part: values}):
            fail(
                f"merging {piece.info.name!r} changed the piece's {part}.",
                "Do not modify the tensors of a piece: use mul, not mul_.",
            )


def _read_in_steps(source: WeightSource, step: int) -> dict[str, Tensor]:
    """Read every tensor in pieces of `step` elements or rows, as its cut allows."""
    return {
        name: torch.cat([source.read(name, *span) for span in _spans(info, source.cut, step)]).view(
            info.shape
        )
        for name, info in source.infos.items()
    }


def _spans(info: TensorInfo, cut: Cut, step: int) -> Iterator[tuple[int, int]]:
    unit = {
        Cut.ELEMENT: 1,
        Cut.ROW: info.numel // info.shape[0] if len(info.shape) > 1 and info.numel else info.numel,
        Cut.TENSOR: info.numel,
    }[cut]
    length = max(min(unit * step, info.numel), 1)
    for start in range(0, max(info.numel, 1), length):
        yield start, min(start + length, info.numel)
