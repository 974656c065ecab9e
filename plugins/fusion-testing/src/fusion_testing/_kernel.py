"""The suite of compiled kernels: the bytes of the functions that they replace."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
import torch

from fusion_core.contracts.specs import load_target
from fusion_core.errors import FusionError
from fusion_core.weights import (
    CastSource,
    Kernel,
    MergedSource,
    Operands,
    RowsKernel,
    SerialExecutor,
    StateDictSource,
)
from fusion_core.weights.merging.compiled import KERNELS_VARIABLE
from fusion_core.weights.merging.piece import Bound
from fusion_core.weights.merging.transforms import transform_experts
from fusion_core.weights.source import view_bytes
from fusion_testing._component import SpecSuite
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from fusion_core.contracts.specs import KernelSpec
    from fusion_core.weights import CompiledFunction, Piece, PieceKernel, WeightSource

    Methods = Callable[[int], Sequence[PieceKernel]]

_NARROW = (torch.bfloat16, torch.float16)
_DTYPES = (torch.float32, *_NARROW)
#: A size of tensors that surveys sample. Of smaller ones they read everything.
_SAMPLED = 2**16 + 5
#: Numbers of experts and sizes of tensors: around a strip's, and one that surveys sample.
_CASES = (*product((1, 2, 3, 16), (1, 7, 1024, 3000)), (3, _SAMPLED))
_NAME = "layer.weight"
_VALUES = ("random", "tied", "denormal", "huge", "zeros")


class KernelSuite(SpecSuite):
    """Checks that every compiled kernel must pass.

    Supply two fixtures: `spec`, and `methods`, a function from the number of experts to the
    transforms and merges whose functions the kernel replaces, with all options that matter. A
    kernel of a survey's function needs methods with that survey.
    """

    @pytest.fixture
    def methods(self) -> Methods:
        """Return the methods to compare, for a number of experts. Authors must supply it."""
        return fail(
            f"{type(self).__name__} has no fixture `methods`.",
            "Add a fixture `methods` that returns a function: from the number of experts to the "
            "methods whose functions the kernel replaces.",
        )

    @pytest.mark.parametrize("kind", _VALUES)
    def test_it_has_the_bytes_of_what_it_replaces(
        self, spec: KernelSpec, methods: Methods, kind: str
    ) -> None:
        """Merges have the same bytes with it and without it, for all dtypes and 1 to 16 experts."""
        generator = torch.Generator().manual_seed(_VALUES.index(kind))
        for count, size in _CASES:
            dtypes = [_DTYPES[int(i)] for i in torch.randint(3, (count + 1,), generator=generator)]
            models = [_draw(kind, size, dtype, generator) for dtype in dtypes]
            drawn = torch.randn(count, generator=generator)
            drawn[1:2] = 0  # if there are several
            weights = tuple(drawn.tolist())
            for method in methods(count):
                _compare(spec, method, models, weights, f"{kind} values, {size} of each, {dtypes}")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_it_leaves_what_is_not_finite_to_the_definition(
        self, spec: KernelSpec, methods: Methods, value: float
    ) -> None:
        """NaN and infinity in the base or in an expert raise the same error."""
        generator = torch.Generator().manual_seed(7)
        for method, damaged in product(methods(2), range(3)):
            models = [_draw("random", 3000, torch.bfloat16, generator) for _ in range(3)]
            models[damaged][2000] = value
            _compare(spec, method, models, (), f"{value} in model {damaged}")

    def test_it_leaves_what_rounding_makes_infinite_to_the_definition(
        self, spec: KernelSpec, methods: Methods
    ) -> None:
        """A merge that is finite in fp32 and not in bf16 raises the same error."""
        generator = torch.Generator().manual_seed(9)
        models = [_draw("random", 3000, torch.float32, generator) for _ in range(3)]
        for model in models:
            model[2000] = torch.finfo(torch.float32).max
        for method in methods(2):
            _compare(spec, method, models, (), "the largest number in fp32")

    def test_it_serves_small_dtypes_and_no_fp64(self, spec: KernelSpec, methods: Methods) -> None:
        """It replaces a function for fp32, bf16 and fp16 operands, and leaves fp64 to it."""
        generator = torch.Generator().manual_seed(8)
        called: set[torch.dtype] = set()
        for method, dtype in product(methods(2), (*_DTYPES, torch.float64)):
            models = [_draw("random", _SAMPLED, dtype, generator) for _ in range(3)]
            calls = _compare(spec, method, models, (), f"operands in {dtype}")
            if calls:
                called.add(dtype)
        if called != set(_DTYPES):
            names = ", ".join(sorted(map(str, called))) or "none"
            fail(
                f"{spec.name!r} was used for operands in these dtypes: {names}.",
                "Name functions of `methods` in `replaces`, and accept fp32, bf16 and fp16 in "
                "`fits`.",
            )


def _compare(
    spec: KernelSpec,
    method: PieceKernel,
    models: Sequence[Tensor],
    weights: tuple[float, ...],
    case: str,
) -> int:
    """Compare a merge with and without a kernel; return how many pieces the kernel served."""
    calls: list[str] = []
    compiled = load_target(spec.target)
    original = compiled.__call__

    def count(self: CompiledFunction, function: Any, piece: Piece) -> Any:  # noqa: ANN401
        calls.append(piece.info.name)
        return original(self, function, piece)

    expected = _merge(method, models, weights, {})
    with (
        patch.object(compiled, "__call__", count),
        patch.dict(os.environ, {KERNELS_VARIABLE: "compiled"}),
    ):
        kernels = dict.fromkeys(spec.replaces, (spec.name, spec.target))
        actual = _merge(method, models, weights, kernels)
    if expected != actual:
        fail(
            f"{type(method).__name__} differs with {spec.name!r} and without it, for {case}: "
            f"expected {expected!r:.200}, got {actual!r:.200}.",
            "Compute in the order of the function that it replaces, without fast-math, and return "
            "None for pieces that hold NaN or infinity.",
        )
    return len(calls)


def _merge(
    method: PieceKernel,
    models: Sequence[Tensor],
    weights: tuple[float, ...],
    kernels: Mapping[str, tuple[str, str]],
) -> list[bytes | str]:
    """Return the bytes of a merge, and of it in bf16 and fp16, or of transformed experts.

    A result that cannot be computed is the text of its error.
    """
    base, *experts = (StateDictSource({_NAME: model}) for model in models)
    named = {f"expert-{number}": expert for number, expert in enumerate(experts)}
    operands = Operands(base, named, weights, "key", bound=Bound.NONE, kernels=kernels)
    sources: Sequence[WeightSource] = ()
    if isinstance(method, Kernel):
        merged = MergedSource(method, operands)
        casts = [{_NAME: replace(merged.infos[_NAME], dtype=dtype)} for dtype in _NARROW]
        sources = [merged, *(CastSource(merged, infos, finite=True) for infos in casts)]
    elif isinstance(method, RowsKernel):
        sources = [*transform_experts(operands, method).values()]
    return [_read(source) for source in sources]


def _read(source: WeightSource) -> bytes | str:
    executor = SerialExecutor()
    try:
        source.prepare(executor)
        source.prepare(executor, _NAME)
        return bytes(view_bytes(source.tensor(_NAME)))
    except FusionError as error:
        return str(error)


def _draw(kind: str, size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return values that are random, often equal, tiny, huge, or mostly zeros of both signs."""
    values = torch.randn(size, generator=generator)
    if kind == "tied":
        values = (values * 2).round() / 4
    elif kind == "denormal":
        values *= 1e-7 if dtype is torch.float16 else 1e-39
    elif kind == "huge":
        values *= 1e4 if dtype is torch.float16 else 1e37
    elif kind == "zeros":
        coins = torch.rand(2, size, generator=generator)
        values = torch.where(coins[0] < 0.6, torch.where(coins[1] < 0.5, -0.0, 0.0), values.sign())  # noqa: PLR2004
    return values.to(dtype)
