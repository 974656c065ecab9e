"""Checks of what an algorithm makes: the models' tensors, in their dtypes, and some identities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core.weights import MergedSource
from fusion_core.weights.packing import PackedSource
from fusion_testing._bench import turned, with_experts, with_sources
from fusion_testing._compare import differing_bytes, differing_values
from fusion_testing._models import MODELS
from fusion_testing._sources import as_delta, on_grid, widened
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.outline import Outline
    from fusion_core.weights import WeightSource
    from fusion_testing._bench import Bench

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
#: Of a tensor's largest entry: what summing in another order may change.
_ROUNDING = 2e-5

on_every_model = pytest.mark.parametrize("model", MODELS)


class MergeChecks:
    """Part of the `AlgorithmSuite`."""

    @on_every_model
    @pytest.mark.parametrize("dtype", _DTYPES)
    def test_every_tensor_is_kept_in_its_dtype(self, bench: Bench, model: str, dtype: str) -> None:
        """No tensor is dropped, added or reshaped; it is merged in fp32 or wider."""
        pool = bench.pool(model, dtype=_DTYPES[dtype])
        merged, outline = bench.merge(pool), bench.outline(pool)
        for name, info in outline.infos.items():
            if merged[name].dtype != info.dtype:
                fail(f"{name!r} of {info.dtype} became {merged[name].dtype}.", "Keep dtypes.")
        _check_dtypes(bench.lazy(pool), outline)

    @on_every_model
    def test_what_is_not_floating_point_is_copied(self, bench: Bench, model: str) -> None:
        """Counters, masks and indices are the base's, or the first expert's without one."""
        pool = bench.pool(model)
        _skip_unless_kept(bench, pool)
        reference = pool.reference.state_dict()
        integers = {n: each for n, each in reference.items() if not each.is_floating_point()}
        merged = bench.merge(pool)
        found = differing_bytes({name: merged[name] for name in integers}, integers)
        if found:
            fail(f"the merge changed {found}.", "Copy what is not floating-point.")

    def test_tied_tensors_stay_tied(self, bench: Bench) -> None:
        """What one parameter gives to two names is merged alike under both."""
        pool = bench.pool("transformer")
        if not bench.outline(pool).infos.keys() >= {"embedding.weight", "output.weight"}:
            pytest.skip("its result has not both tensors")
        merged = bench.merge(pool)
        embedding, output = merged["embedding.weight"], merged["output.weight"]
        if differing_bytes({"": embedding}, {"": output}):
            fail(
                "'embedding.weight' and 'output.weight' are one parameter in every model, and two "
                "in the merge.",
                "Let no result depend on a tensor's name; where it must, as random numbers do, "
                "declare this check in expected_failures.",
            )

    def test_half_precision_is_rounded_once(self, bench: Bench) -> None:
        """Merging bf16 models is merging the same values in fp32, rounded at the end."""
        pool = bench.pool("mlp", dtype=torch.bfloat16)
        wide = bench.merge(with_sources(pool, widened))
        infos = bench.outline(pool).infos
        expected = {name: each.to(infos[name].dtype) for name, each in wide.items()}
        found = differing_bytes(bench.merge(pool), expected)
        if found:
            fail(
                f"merging bf16 models differs from merging their values in fp32: {found}.",
                "Compute in the dtype of `piece.experts` and leave rounding to the engine.",
            )

    @on_every_model
    def test_equal_models_give_the_same_model(self, bench: Bench, model: str) -> None:
        """Where all task vectors are zero there is nothing to merge."""
        pool = bench.pool(model, spread=0.0)
        _skip_unless_kept(bench, pool)
        reference = pool.reference.state_dict()
        found = differing_values(bench.merge(pool), reference, tolerance=_ROUNDING)
        if found:
            fail(
                f"merging copies of one model changed it: {found}.",
                "Add what you merge of task vectors to `piece.base`, or let the experts' shares "
                "sum to one.",
            )

    @on_every_model
    def test_the_order_of_experts_does_not_matter(self, bench: Bench, model: str) -> None:
        """Experts in another order give the same merge, up to rounding."""
        if bench.spec.ordered:
            pytest.skip("its spec says that the experts' order matters")
        pool = bench.pool(model)
        found = differing_values(bench.merge(turned(pool)), bench.merge(pool), tolerance=_ROUNDING)
        if found:
            fail(
                f"the merge depends on the order of the experts: {found}.",
                "Treat all experts alike; a method that gives them roles says ordered=True in its "
                "spec.",
            )

    def test_experts_may_be_differences_from_the_base(self, bench: Bench) -> None:
        """An adapter is read as a task vector: experts given so merge to the same model."""
        pool = with_sources(bench.pool("mlp"), on_grid)
        if pool.base is None:
            pytest.skip("the pool has no base that experts could differ from")
        base = pool.base
        deltas = {name: as_delta(each, base) for name, each in pool.experts.items()}
        found = differing_values(
            bench.merge(with_experts(pool, deltas)), bench.merge(pool), tolerance=_ROUNDING
        )
        if found:
            fail(
                f"experts given as differences from the base merge to something else: {found}.",
                "Read experts by context.merged and Piece, which know both forms, or look at "
                "`is_delta` of the sources that you read yourself.",
            )

    @on_every_model
    def test_a_directory_holds_the_same_weights(
        self, bench: Bench, model: str, tmp_path: Path
    ) -> None:
        """Written in shards and read again, the merge has the same bytes as in memory."""
        pool = bench.pool(model)
        result = bench.run(pool, output=tmp_path / "merged")
        found = differing_bytes(result.weights.state_dict(), bench.merge(pool))
        if found:
            fail(f"the directory differs from the merge in memory: {found}.", "Be deterministic.")
        for name in result.side_files:
            if not (tmp_path / "merged" / name).is_file():
                fail(f"the side file {name!r} is not in the directory.", "Use plain file names.")


def _skip_unless_kept(bench: Bench, pool: ModelPool[Any]) -> None:
    if not bench.keeps_tensors(pool):
        pytest.skip("its result has other tensors than the models")


def _check_dtypes(source: WeightSource, outline: Outline) -> None:
    for name, info in source.infos.items():
        theirs = outline.infos[name].dtype
        values = source.tensor(name) if not info.numel else _made(source, name)
        if values.dtype != info.dtype:
            fail(
                f"the algorithm makes {values.dtype} of tensor {name!r}, and {info.dtype} is "
                "wanted.",
                "Compute in the dtype of `piece.experts`; leave rounding to the engine.",
            )
        if info.dtype.is_floating_point and info.dtype.itemsize < theirs.itemsize:
            fail(f"{name!r} of {theirs} is merged in {info.dtype}.", "Compute in no narrower one.")


def _made(source: WeightSource, name: str) -> torch.Tensor:
    """Return a whole tensor as the kernel makes it, or the first matrix that it holds.

    The source has not yet given it its dtype.
    """
    if isinstance(source, PackedSource):
        return _made(source.matrices, source.layout.describe_matrices(source.infos[name])[0].name)
    info = source.infos[name]
    if not isinstance(source, MergedSource) or not info.dtype.is_floating_point:
        return source.tensor(name)
    return source.kernel.merge(source.piece(name, 0, info.numel))
