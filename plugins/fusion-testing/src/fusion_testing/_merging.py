"""Checks of merges: the models' tensors in their dtypes, and identities such as equal models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from fusion_core.weights import MergedSource
from fusion_core.weights.packing import PackedSource
from fusion_testing._bench import reverse_experts, with_experts, with_sources
from fusion_testing._compare import differing_bytes, differing_values
from fusion_testing._models import MODELS
from fusion_testing._sources import as_delta, on_grid, widened
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core.contracts.outline import Outline
    from fusion_core.weights import WeightSource
    from fusion_testing._bench import Bench

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
#: Largest change by another order of summation, relative to a tensor's largest entry.
_ROUNDING = 2e-5

on_every_model = pytest.mark.parametrize("model", MODELS)


class MergeChecks:
    """Checks of merged tensors; part of `AlgorithmSuite`."""

    @on_every_model
    @pytest.mark.parametrize("dtype", _DTYPES)
    def test_every_tensor_is_kept_in_its_dtype(self, bench: Bench, model: str, dtype: str) -> None:
        """The merge has exactly the outline's tensors, and computes them in fp32 or wider."""
        pool = bench.pool(model, dtype=_DTYPES[dtype])
        merged, outline = bench.merge(pool), bench.outline(pool)
        for name, info in outline.infos.items():
            if merged[name].dtype != info.dtype:
                fail(
                    f"expected {name!r} in {info.dtype}, got {merged[name].dtype}.",
                    "Keep the dtype of every tensor.",
                )
        _check_dtypes(bench.lazy(pool), outline)

    @on_every_model
    def test_what_is_not_floating_point_is_copied(self, bench: Bench, model: str) -> None:
        """Integer and boolean tensors are the base's, or the first expert's without a base."""
        pool = bench.pool(model)
        bench.skip_unless_tensors_match(pool)
        reference = pool.reference.state_dict()
        integers = {name: t for name, t in reference.items() if not t.is_floating_point()}
        merged = bench.merge(pool)
        if difference := differing_bytes({name: merged[name] for name in integers}, integers):
            fail(
                f"the merge changed integers or booleans: {difference}.",
                "Copy tensors that are not floating-point.",
            )

    def test_tied_tensors_stay_tied(self, bench: Bench) -> None:
        """A parameter with two names is merged to the same values under both."""
        pool = bench.pool("transformer")
        if not bench.outline(pool).infos.keys() >= {"embedding.weight", "output.weight"}:
            pytest.skip("the result does not have both tensors")
        merged = bench.merge(pool)
        embedding, output = merged["embedding.weight"], merged["output.weight"]
        if differing_bytes({"": embedding}, {"": output}):
            fail(
                "'embedding.weight' and 'output.weight' are one parameter in every model, but "
                "differ in the merge.",
                "Do not let results depend on a tensor's name. If they must, as with random "
                "numbers, declare this check in expected_failures.",
            )

    def test_half_precision_is_rounded_once(self, bench: Bench) -> None:
        """Merging bf16 models equals merging their values in fp32 and rounding the result."""
        pool = bench.pool("mlp", dtype=torch.bfloat16)
        wide = bench.merge(with_sources(pool, widened))
        infos = bench.outline(pool).infos
        expected = {name: values.to(infos[name].dtype) for name, values in wide.items()}
        if difference := differing_bytes(bench.merge(pool), expected):
            fail(
                f"merging bf16 models differs from merging their values in fp32: {difference}.",
                "Compute in the dtype of `piece.experts`, and let the engine round the result.",
            )

    @on_every_model
    def test_equal_models_give_the_same_model(self, bench: Bench, model: str) -> None:
        """Merging equal models returns that model: all task vectors are zero."""
        pool = bench.pool(model, spread=0.0)
        bench.skip_unless_tensors_match(pool)
        reference = pool.reference.state_dict()
        if difference := differing_values(bench.merge(pool), reference, tolerance=_ROUNDING):
            fail(
                f"expected copies of one model to merge to that model, but {difference} differs.",
                "Add the merged task vector to `piece.base`, or let the experts' factors sum to "
                "one.",
            )

    @on_every_model
    def test_the_order_of_experts_does_not_matter(self, bench: Bench, model: str) -> None:
        """Experts in another order give the same merge, up to rounding."""
        if bench.spec.ordered:
            pytest.skip("the spec says that the order of experts matters")
        pool = bench.pool(model)
        merged = bench.merge(pool)
        swapped = bench.merge(reverse_experts(pool))
        if difference := differing_values(swapped, merged, tolerance=_ROUNDING):
            fail(
                f"the merge depends on the order of the experts: {difference}.",
                "Treat all experts alike. If experts have roles, set ordered=True in the spec.",
            )

    def test_experts_may_be_differences_from_the_base(self, bench: Bench) -> None:
        """Experts stored as differences from the base merge to the same model."""
        pool = with_sources(bench.pool("mlp"), on_grid)
        if pool.base is None:
            pytest.skip("the pool has no base")
        base = pool.base
        deltas = {name: as_delta(expert, base) for name, expert in pool.experts.items()}
        merged = bench.merge(with_experts(pool, deltas))
        if difference := differing_values(merged, bench.merge(pool), tolerance=_ROUNDING):
            fail(
                "experts stored as differences from the base merge to another model: "
                f"{difference}.",
                "Read experts through context.merge and Piece, which handle both forms, or check "
                "`is_delta` of the sources that you read yourself.",
            )

    @on_every_model
    def test_a_directory_holds_the_same_weights(
        self, bench: Bench, model: str, tmp_path: Path
    ) -> None:
        """A merge written in shards has the same bytes as the merge in memory."""
        pool = bench.pool(model)
        result = bench.run(pool, output=tmp_path / "merged")
        if difference := differing_bytes(result.weights.state_dict(), bench.merge(pool)):
            fail(
                f"the written merge differs from the merge in memory: {difference}.",
                "Make the method deterministic: equal inputs must give equal bytes.",
            )
        for name in result.side_files:
            if not (tmp_path / "merged" / name).is_file():
                fail(
                    f"the side file {name!r} is missing in the output directory.",
                    "Use a plain file name without folders.",
                )


def _check_dtypes(source: WeightSource, outline: Outline) -> None:
    for name, info in source.infos.items():
        expected = outline.infos[name].dtype
        values = _compute(source, name) if info.numel else source.tensor(name)
        if values.dtype != info.dtype:
            fail(
                f"expected the algorithm to compute {name!r} in {info.dtype}, got {values.dtype}.",
                "Compute in the dtype of `piece.experts`, and let the engine round the result.",
            )
        if info.dtype.is_floating_point and info.dtype.itemsize < expected.itemsize:
            fail(
                f"{name!r} is stored in {expected} but computed in {info.dtype}.",
                f"Compute in {expected} or wider.",
            )


def _compute(source: WeightSource, name: str) -> torch.Tensor:
    """Return a tensor as the kernel computes it, before the source converts its dtype.

    Of a tensor with several matrices, return the first one.
    """
    if isinstance(source, PackedSource):
        return _compute(
            source.matrices, source.layout.describe_matrices(source.infos[name])[0].name
        )
    info = source.infos[name]
    if not isinstance(source, MergedSource) or not info.dtype.is_floating_point:
        return source.tensor(name)
    return source.kernel.merge(source.piece(name, 0, info.numel))
