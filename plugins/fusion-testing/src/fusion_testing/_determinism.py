"""Checks that an algorithm is a function of models, options and seed, and touches nothing else."""

from __future__ import annotations

import math
import pickle
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

#: Rows or elements a piece: pieces that do not divide tensors, and whole tensors.
_STEPS = (7, 10**9)


class DeterminismChecks:
    """Part of the `AlgorithmSuite`."""

    @on_every_model
    def test_the_seed_decides_everything(self, bench: Bench, model: str) -> None:
        """The same models, options and seed give the same bytes, whatever ran before."""
        pool = bench.pool(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            first = bench.merge(pool)
            bench.merge(bench.pool("mlp", seed=5))
            torch.manual_seed(2)
            found = differing_bytes(first, bench.merge(pool))
        if found:
            fail(
                f"two runs with one seed differ: {found}.",
                "Draw random numbers from piece.uniform, or from a torch.Generator seeded with "
                "context.seed; keep no state in the algorithm between runs.",
            )

    @on_every_model
    @pytest.mark.parametrize("workers", [1, 3])
    def test_workers_do_not_matter(self, bench: Bench, model: str, workers: int) -> None:
        """On the calling thread, on one worker or on several: the same bytes."""
        pool = bench.pool(model)
        threaded = bench.merge(pool, executor="threads", workers=workers)
        found = differing_bytes(bench.merge(pool), threaded)
        if found:
            fail(
                f"{workers} worker(s) give another merge: {found}.",
                "`merge` must be pure: same piece, same bytes, on any thread, in any order.",
            )

    @on_every_model
    @pytest.mark.parametrize("cut", Cut, ids=lambda cut: cut.value)
    def test_cuts_do_not_matter(self, bench: Bench, model: str, cut: Cut) -> None:
        """However the engine cuts tensors, and operands can be cut: the same bytes."""
        pool = bench.pool(model)
        coarse = bench.lazy(with_sources(pool, lambda source: recut(source, cut)))
        expected = bench.lazy(pool).state_dict()
        for step in _STEPS:
            found = differing_bytes(expected, _read_in_steps(coarse, step))
            if found:
                fail(
                    f"the merge depends on where tensors are cut: {found} (operands cut by "
                    f"{cut.value}, pieces of {step}).",
                    "Sum over experts by in_order, not by sum(dim=0) or mean(dim=0), whose "
                    "rounding depends on the piece's size; gather statistics in `survey`; or "
                    "declare a coarser `cut`.",
                )

    def test_the_merge_can_be_sent_to_another_process(self, bench: Bench) -> None:
        """Pickled and read elsewhere, a lazy merge has the same bytes: any executor can run it."""
        source = bench.lazy(bench.pool("mlp"))
        if not isinstance(source, MergedSource):
            pytest.skip("what is returned is not a lazy merge by a kernel")
        expected = source.state_dict()
        try:
            again = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own bytes
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            fail(
                f"the merge cannot be pickled: {error}",
                "Keep numbers, names and tensors in kernels; no functions made on the spot, no "
                "open files, no locks.",
            )
        found = differing_bytes(expected, again.state_dict())
        if found:
            fail(f"the merge comes out of a pickle changed: {found}.", "Keep all state picklable.")

    @on_every_model
    def test_the_models_are_not_changed(self, bench: Bench, model: str) -> None:
        """The user's live models are as they were: values, gradients, modes."""
        pool = bench.pool(model)
        with untouched_modules(f"{bench.spec.name!r}", bench.modules(pool)):
            bench.merge(pool)

    @on_every_model
    def test_pieces_are_not_written_into(self, bench: Bench, model: str) -> None:
        """What a piece gives to `merge` is shared with whoever reads the piece next."""
        kernels = bench.kernels_on(bench.pool(model))
        if not kernels:
            pytest.skip("what is returned is not a lazy merge by a kernel")
        for applied in kernels:
            for name, info in applied.infos.items():
                if info.dtype.is_floating_point:
                    _check_unwritten(applied, applied.piece(name, 0, info.numel))

    @on_every_model
    def test_global_state_is_not_changed(self, bench: Bench, model: str) -> None:
        """Random numbers, default dtype, environment and the like belong to the process."""
        pool = bench.pool(model)
        bench.merge(pool)  # what a first run imports may set what it likes
        with untouched_globals(f"{bench.spec.name!r}"):
            bench.merge(pool)

    def test_metrics_are_finite_and_steps_go_up(self, bench: Bench) -> None:
        """What is logged can be drawn: numbers, at steps that never go back."""
        logged: list[tuple[int, Mapping[str, float]]] = []
        bench.lazy(bench.pool("mlp"), on_metrics=lambda *each: logged.append(each))
        steps = [step for step, _ in logged]
        if steps != sorted(steps):
            fail("context.log was given a step after a later one.", "Count steps upwards.")
        for step, metrics in logged:
            for name, value in metrics.items():
                if not math.isfinite(value):
                    fail(f"metric {name!r} is {value} at step {step}.", "Log finite numbers.")


def _check_unwritten(applied: AppliedKernel[Any], piece: Piece) -> None:
    operands, kernel = applied.operands, applied.kernel
    parts = ["experts", *(["base", "task_vectors"] if operands.base is not None else [])]
    parts += [MERGED] if MERGED in operands.extras else []  # other extras are read anew each time
    before = {part: getattr(piece, part).clone() for part in parts}
    if isinstance(kernel, RowsKernel):
        kernel.rows(piece)
    else:
        kernel.merge(piece)
    for part, values in before.items():
        if differing_bytes({part: getattr(piece, part)}, {part: values}):
            fail(
                f"merging {piece.info.name!r} changed the piece's {part}.",
                "Write into nothing that a piece gives you: mul, not mul_.",
            )


def _read_in_steps(source: WeightSource, step: int) -> dict[str, Tensor]:
    """Read every tensor in pieces of `step` of what its cut allows."""
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
