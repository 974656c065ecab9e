from __future__ import annotations

import hashlib
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fusion_core.errors import BrokenPluginError, WeightsError
from fusion_core.weights import (
    CastSource,
    CheckpointSource,
    Cut,
    Kernel,
    Linear,
    MergedSource,
    Operands,
    Piece,
    Scan,
    Scope,
    SerialExecutor,
    StateDictSource,
    TensorInfo,
    assemble,
    source,
    sum_in_order,
)
from fusion_core.weights.merging.counters import counter_uniform
from fusion_core.weights.merging.execution import group_into_units, run_all
from fusion_core.weights.merging.piece import check_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


Models = dict[str, dict[str, torch.Tensor]]


def operands(models: Mapping[str, Mapping[str, torch.Tensor]], **keys: Any) -> Operands:
    base = StateDictSource(models["base"], label="base") if "base" in models else None
    experts = {
        name: StateDictSource(tensors, label=name)
        for name, tensors in models.items()
        if name != "base"
    }
    return Operands(base, experts, **keys)


def merged(models: Models, kernel: Kernel, **keys: Any) -> MergedSource:
    return MergedSource(kernel, operands(models, **keys))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BLOCK", 8)


# --- pieces -------------------------------------------------------------------------------------


class Spy(Kernel):
    """Returns the base and remembers the pieces."""

    def __init__(self, cut: Cut) -> None:
        self.kind = cut
        self.pieces: list[Piece] = []

    @property
    def cut(self) -> Cut:
        return self.kind

    def merge(self, piece: Piece) -> torch.Tensor:
        self.pieces.append(piece)
        return piece.base


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("cut", "name", "shapes"),
    [
        (Cut.ELEMENT, "layer.weight", [(8,)] * 4 + [(3,)]),
        (Cut.ELEMENT, "layer.bias", [(7,)]),
        (Cut.ELEMENT, "scale", [(1,)]),
        (Cut.ELEMENT, "empty", [(0,)]),
        (Cut.ROW, "layer.weight", [(1, 5)] * 7),
        (Cut.ROW, "embedding.weight", [(2, 3)] * 5 + [(1, 3)]),
        (Cut.ROW, "layer.bias", [(7,)]),
        (Cut.ROW, "scale", [(1,)]),
        (Cut.ROW, "empty", [(0, 4)]),
        (Cut.TENSOR, "layer.weight", [(7, 5)]),
        (Cut.TENSOR, "scale", [()]),
        (Cut.TENSOR, "empty", [(0, 4)]),
    ],
)
def test_pieces_have_the_documented_shapes(
    models: Models, cut: Cut, name: str, shapes: list[tuple[int, ...]]
) -> None:
    spy = Spy(cut)
    whole = assemble(merged(models, spy, weights=(1.0, 2.0, 3.0)), name)
    assert torch.equal(whole.reshape(models["base"][name].shape), models["base"][name])
    assert [tuple(piece.base.shape) for piece in spy.pieces] == shapes
    for piece, shape in zip(spy.pieces, shapes, strict=True):
        assert piece.experts.shape == piece.task_vectors.shape == (3, *shape)
        assert piece.uniform(0).shape == shape
        assert piece.weights.shape == (3, *[1] * len(shape))
        assert (piece.experts * piece.weights).shape == (3, *shape)
        assert piece.names == ("a", "b", "c")
        flat = models["b"][name].reshape(-1)[piece.start : piece.stop].reshape(shape)
        assert torch.equal(piece.experts[1], flat)
        assert torch.equal(piece.task_vectors[1], flat - piece.base)


def test_a_pool_without_a_base_has_no_task_vectors(models: Models) -> None:
    del models["base"]

    class Asks(Kernel):
        def merge(self, piece: Piece) -> torch.Tensor:
            return piece.task_vectors[0]

    with pytest.raises(WeightsError, match="the pool has no base") as caught:
        merged(models, Asks()).tensor("scale")
    assert "Give the model pool the model that the experts were" in str(caught.value)
    plain = merged(models, Linear((0.5, 0.25, 0.25), relative=False))
    assert plain.infos.keys() == models["a"].keys()
    assert torch.equal(plain.tensor("steps"), models["a"]["steps"])


WRONG: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "fewer": (lambda base: base[:-1], r"float32 of shape \[34\]"),
    "more": (lambda base: torch.cat([base, base]), r"float32 of shape \[70\]"),
    "a sum": (torch.sum, r"float32 of shape \[\]"),
    "folded": (lambda base: base.reshape(7, 5), r"float32 of shape \[7, 5\]"),
    "integers": (lambda base: base.int(), "int32 of shape"),
    "truth values": (lambda base: base > 0, "bool of shape"),
    "complex": (lambda base: base + 1j, "complex64 of shape"),
    "nothing": (lambda base: None, "a NoneType, not a tensor"),
    "a list": (lambda base: base.tolist(), "a list, not a tensor"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_kernel_must_return_a_tensor_of_the_shape_and_kind_of_its_piece(
    models: Models, wrong: str
) -> None:
    make, message = WRONG[wrong]

    class Wrong(Kernel):
        def merge(self, piece: Piece) -> Any:
            return make(piece.base)

    with pytest.raises(BrokenPluginError, match=message) as caught:
        merged(models, Wrong()).tensor("layer.weight")
    assert "algorithm Wrong: for tensor 'layer.weight'" in caught.value.message


def test_a_sum_that_overflows_is_computed_again_in_double_precision() -> None:
    large = torch.finfo(torch.float32).max
    near = torch.tensor([large, -large, 1.0])
    models = {name: {"w": near * factor} for name, factor in (("base", 1), ("a", 1), ("b", 0.75))}
    mean = merged(models, Linear((0.5, 0.5), relative=False)).tensor("w")
    assert torch.equal(mean, (near.double() * 0.875).float())
    opposite = {"base": {"w": near}, "a": {"w": -near}}  # the task vector itself overflows
    half = merged(opposite, Linear((0.25,))).tensor("w")
    assert torch.equal(half, (near.double() * 0.5).float())
    twice = merged(opposite, Linear((-1.0,))).tensor("w")  # nothing represents this
    assert twice.isinf().tolist() == [True, True, False]


def test_a_survey_of_task_vectors_that_overflow_is_an_error() -> None:
    class Surveys(Kernel):
        scope = Scope.TENSOR

        def survey(self, scan: Scan) -> torch.Tensor:
            return scan(
                lambda piece: piece.task_vectors.abs().amax(), torch.maximum, torch.zeros(())
            )

        def merge(self, piece: Piece) -> torch.Tensor:
            return piece.base.clone()

    near = torch.full((2,), torch.finfo(torch.float32).max)
    with pytest.raises(WeightsError, match="tensor 'w' and the base's are too far apart"):
        merged({"base": {"w": near}, "a": {"w": -near}}, Surveys()).tensor("w")


@pytest.mark.parametrize("wide", ["base", "b"])
def test_double_precision_is_kept_where_an_operand_has_it(models: Models, wide: str) -> None:
    models[wide]["layer.bias"] = models[wide]["layer.bias"].double() + 1e-12
    seen: dict[str, torch.dtype] = {}

    class Watch(Kernel):
        def merge(self, piece: Piece) -> torch.Tensor:
            seen[piece.info.name] = piece.experts.dtype
            assert piece.experts.dtype == piece.base.dtype == piece.weights.dtype
            return piece.experts[1] if wide == "b" else piece.base

    merge = merged(models, Watch())
    assert merge.infos["layer.bias"].dtype is torch.float64
    assert torch.equal(merge.tensor("layer.bias"), models[wide]["layer.bias"])
    assert merge.tensor("layer.weight").dtype is torch.float32
    assert seen == {"layer.bias": torch.float64, "layer.weight": torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(models: Models, dtype: torch.dtype) -> None:
    halves = {
        model: {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in tensors.items()
        }
        for model, tensors in models.items()
    }
    weight = merged(halves, Linear((0.3, 0.3, 0.3))).tensor("layer.weight")
    base = halves["base"]["layer.weight"].float()
    total = base.clone() * 0
    for expert in "abc":
        total = total + (halves[expert]["layer.weight"].float() - base) * 0.3
    assert torch.equal(weight, base + total)


def test_integer_buffers_are_the_bases(models: Models) -> None:
    for n, expert in enumerate("abc"):
        models[expert]["steps"] = torch.tensor(100 + n)
    merge = merged(models, Linear((1.0, 1.0, 1.0)))
    assert merge.infos["steps"].dtype is torch.int64
    assert torch.equal(merge.tensor("steps"), models["base"]["steps"])


class Together(StateDictSource):
    """A source that two readers must read from at once."""

    meeting = threading.Barrier(2, timeout=300)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        self.meeting.wait()
        return super().read(name, start, stop)


def test_pieces_are_read_concurrently() -> None:
    source = Together({"a": torch.arange(8.0)})
    read = Operands(source, {"x": source})
    pieces = [Piece(read, source.infos["a"], span, Cut.ELEMENT) for span in [(0, 4), (4, 8)]]
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda piece: piece.base, pieces)
    assert torch.equal(torch.cat([first, second]), torch.arange(8.0))


# --- determinism --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Busy(Kernel):
    """Uses everything: a survey, weights, random numbers and a sum."""

    scope: Scope = Scope.MODEL  # type: ignore[misc]
    cut: Cut = Cut.ELEMENT  # type: ignore[misc]

    def survey(self, scan: Scan) -> torch.Tensor:
        return scan(_squares, torch.add, torch.zeros(()))

    def merge(self, piece: Piece) -> torch.Tensor:
        rows = piece.task_vectors * piece.weights
        noise = torch.stack([piece.uniform(k) for k in range(len(rows))])
        norms = piece.state.reshape(-1, *[1] * (rows.ndim - 1)).sqrt()
        return piece.base + sum_in_order(rows.where(noise < 0.5, 0) / norms)


def _squares(piece: Piece) -> torch.Tensor:
    return piece.task_vectors.square().reshape(len(piece.names), -1).sum(1)


def big_models() -> Models:
    generator = torch.Generator().manual_seed(3)
    base = {
        "w": torch.randn(700, 500, generator=generator),  # more than one block
        "v": torch.randn(1000, generator=generator),
        "s": torch.randn((), generator=generator),
    }
    experts = {
        name: {
            key: values + 0.01 * torch.randn(values.shape, generator=generator)
            for key, values in base.items()
        }
        for name in "abcde"
    }
    return {"base": base, **experts}


def test_workers_and_cuts_change_no_bit() -> None:
    models = big_models()
    digests = set()
    for executor in (
        SerialExecutor(),
        ThreadPoolExecutor(1),
        ThreadPoolExecutor(2),
        ThreadPoolExecutor(4),
    ):
        for cut in Cut:
            merge = merged(models, Busy(cut=cut), weights=(1.0, 2.0, 0.5, -1.0, 3.0), key="7")
            with executor if cut is Cut.TENSOR else nullcontext():
                merge.prepare(executor)
                spans = [(n, *span) for n, i in merge.infos.items() for span in merge.cut.ranges(i)]
                parts = list(run_all(executor, lambda unit, s=merge: s.read(*unit), spans))
            digest = hashlib.sha256()
            for part in parts:
                digest.update(source.view_bytes(part.contiguous()))
            digests.add(digest.digest())
    assert len(digests) == 1


def test_a_merge_of_merges_equals_its_steps(models: Models) -> None:
    inner = merged({k: models[k] for k in ("base", "a", "b")}, Linear((0.5, 0.25)))
    experts = {"inner": inner, "c": StateDictSource(models["c"])}
    base = StateDictSource(models["base"])
    nested = MergedSource(Linear((0.7, 0.4)), Operands(base, experts))
    stepwise = MergedSource(
        Linear((0.7, 0.4)),
        Operands(base, {**experts, "inner": StateDictSource(inner.state_dict())}),
    )
    for name in models["base"]:
        assert torch.equal(nested.tensor(name), stepwise.tensor(name))


def test_a_merge_of_half_precision_merges_rounds_once(models: Models) -> None:
    halves = {
        model: {n: v.half() if v.is_floating_point() else v for n, v in tensors.items()}
        for model, tensors in models.items()
    }
    inner = merged({k: halves[k] for k in ("base", "a", "b")}, Linear((0.33, 0.33)))
    assert inner.infos["layer.weight"].dtype is torch.float32
    assert not torch.equal(inner.tensor("layer.weight"), inner.tensor("layer.weight").half())


def test_a_merge_has_the_coarsest_cut_of_its_operands(models: Models) -> None:
    for cut in Cut:
        inner = merged({k: models[k] for k in ("base", "a")}, Spy(cut))
        spy = Spy(Cut.ELEMENT)
        outer = MergedSource(spy, Operands(StateDictSource(models["base"]), {"x": inner}))
        assert outer.cut is cut
        outer.tensor("layer.weight")
        rank = 1 if cut is Cut.ELEMENT else 2
        assert [piece.base.ndim for piece in spy.pieces] == [rank]


# --- surveys ------------------------------------------------------------------------------------


class Surveyor(Kernel):
    def __init__(self, scope: Scope) -> None:
        self.asked = scope
        self.surveys: list[list[str]] = []
        self.seen: list[tuple[str, int, int]] = []

    @property
    def scope(self) -> Scope:
        return self.asked

    def survey(self, scan: Scan) -> int:
        self.surveys.append([info.name for info in scan.infos])
        total = scan(self._look, lambda total, part: total + part, 0)
        assert total == scan.numel
        return total

    def _look(self, piece: Piece) -> int:
        self.seen.append((piece.info.name, piece.start, piece.stop))
        assert piece.state is None
        return piece.base.numel()

    def merge(self, piece: Piece) -> torch.Tensor:
        assert piece.state == (None if self.asked is Scope.NONE else self.expected(piece))
        return piece.base

    def expected(self, piece: Piece) -> int:
        return piece.info.numel if self.asked is Scope.TENSOR else 7 * 5 + 7 + 11 * 3 + 1


FLOATS = ["layer.weight", "layer.bias", "embedding.weight", "scale", "empty"]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("prepare", [True, False])
@pytest.mark.parametrize("scope", list(Scope))
def test_a_survey_sees_its_scope_once(models: Models, scope: Scope, prepare: bool) -> None:  # noqa: FBT001
    kernel = Surveyor(scope)
    merge = merged(models, kernel)
    with ThreadPoolExecutor(3) as executor:
        if prepare:
            for name in [None, None, *models["base"]]:
                merge.prepare(executor, name)
        list(executor.map(merge.tensor, [*models["base"]] * 3))
    expected: list[list[str]] = {
        Scope.NONE: [],
        Scope.TENSOR: [[name] for name in FLOATS],
        Scope.MODEL: [FLOATS],
    }[scope]
    assert sorted(kernel.surveys) == sorted(expected)
    assert len(kernel.seen) == len(set(kernel.seen))
    assert {name for name, _, _ in kernel.seen} == {n for names in expected for n in names}


@pytest.mark.usefixtures("small_blocks")
def test_a_scan_folds_in_the_order_of_the_blocks(models: Models) -> None:
    class Order(Kernel):
        scope = Scope.MODEL

        def survey(self, scan: Scan) -> list[tuple[str, int]]:
            return scan(lambda p: [(p.info.name, p.start)], lambda t, p: t + p, [])

        def merge(self, piece: Piece) -> torch.Tensor:
            raise AssertionError

    merge = merged(models, Order())
    with ThreadPoolExecutor(4) as executor:
        merge.prepare(executor)
    blocks = [
        (name, start) for name in FLOATS for start, _ in Cut.ELEMENT.ranges(merge.infos[name])
    ]
    assert merge._surveys[""].result == blocks  # noqa: SLF001


def test_the_survey_of_an_operand_comes_first(models: Models) -> None:
    inner = merged({k: models[k] for k in ("base", "a")}, Surveyor(Scope.MODEL))
    outer_kernel = Surveyor(Scope.MODEL)
    outer = MergedSource(outer_kernel, Operands(StateDictSource(models["base"]), {"x": inner}))
    with ThreadPoolExecutor(2) as executor:
        outer.prepare(executor)
    assert len(inner.kernel.surveys) == len(outer_kernel.surveys) == 1  # type: ignore[attr-defined]


def test_a_failing_survey_is_not_remembered(models: Models) -> None:
    class Fails(Surveyor):
        def survey(self, scan: Scan) -> int:
            self.surveys.append([])
            raise RuntimeError("no")

    kernel = Fails(Scope.MODEL)
    merge = merged(models, kernel)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            merge.tensor("scale")
    assert len(kernel.surveys) == 2


# --- not a number -------------------------------------------------------------------------------


def test_infinities_that_cancel_are_still_reported() -> None:
    values = torch.tensor([float("inf"), -float("inf"), 1.0])
    with pytest.raises(WeightsError, match="2 values"):
        check_finite(values, "x", "model")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_finite_values_are_finite(dtype: torch.dtype) -> None:
    check_finite(torch.full((100,), torch.finfo(dtype).max, dtype=dtype), "x", "model")
    check_finite(torch.zeros(0, dtype=dtype), "x", "model")


def stored_in(merge: MergedSource, dtype: torch.dtype) -> CastSource:
    infos = {
        name: source.TensorInfo(name, info.shape, dtype)
        for name, info in merge.infos.items()
        if info.dtype.is_floating_point
    }
    return CastSource(merge, infos, finite=True)


def test_an_overflow_of_the_output_is_refused(models: Models) -> None:
    merge = merged(models, Linear((1e8, 0.0, 0.0)))
    with pytest.raises(WeightsError, match=r"merge by Linear in torch\.float16: tensor 'layer"):
        stored_in(merge, torch.float16).state_dict()


def test_a_method_that_rounds_by_itself_is_checked(models: Models) -> None:
    class Rounded(Kernel):
        is_bounded = True

        def merge(self, piece: Piece) -> torch.Tensor:
            return (piece.base * torch.nan).to(torch.bfloat16)

    merge = merged(models, Rounded())
    with pytest.raises(WeightsError, match=r"merge by Rounded in torch\.bfloat16: tensor 'layer"):
        stored_in(merge, torch.bfloat16).state_dict()


# --- random numbers -----------------------------------------------------------------------------


def splitmix64(key: str, index: int) -> float:
    """The reference, in whole numbers."""
    mask = 2**64 - 1
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    z = (seed + index * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    z ^= z >> 31
    return (z >> 40) / 2**24


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=10), st.integers(0, 2**40), st.integers(0, 50))
def test_random_numbers_are_splitmix64(key: str, start: int, count: int) -> None:
    numbers = counter_uniform(key, start, start + count)
    assert numbers.dtype is torch.float32
    assert numbers.tolist() == [splitmix64(key, start + n) for n in range(count)]


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_many_random_numbers_are_the_same_under_any_default(default: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        numbers = counter_uniform("key", 3, 70_003)
    finally:
        torch.set_default_dtype(before)
    assert numbers.dtype is torch.float32
    indices = (0, 2**15 - 1, 2**15, 69_999)
    assert numbers[list(indices)].tolist() == [splitmix64("key", 3 + index) for index in indices]


def test_random_numbers_depend_on_seed_expert_tensor_and_element(models: Models) -> None:
    def draw_numbers(expert: int, name: str, key: str, start: int = 0) -> list[float]:
        models_and_key = operands(models, key=key)
        info = merged(models, Spy(Cut.ELEMENT)).infos[name]
        return Piece(models_and_key, info, (start, start + 7), Cut.ELEMENT).uniform(expert).tolist()

    variants = [
        draw_numbers(0, "layer.weight", "0"),
        draw_numbers(1, "layer.weight", "0"),
        draw_numbers(0, "layer.bias", "0"),
        draw_numbers(0, "layer.weight", "1"),
        draw_numbers(0, "layer.weight", "0", start=7),
    ]
    assert len({number for variant in variants for number in variant}) == 7 * len(variants)
    assert draw_numbers(0, "layer.weight", "0") == variants[0]


# --- running ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_results_come_in_the_order_of_the_units(workers: int) -> None:
    executor = ThreadPoolExecutor(workers) if workers else SerialExecutor()
    with executor:
        assert list(run_all(executor, lambda n: n * n, range(100))) == [n * n for n in range(100)]
        assert list(run_all(executor, lambda n: n, [])) == []


def test_small_pieces_share_units_of_work_and_large_ones_do_not() -> None:
    """Each unit wakes a worker, which takes as long as merging some thousands of elements."""
    sizes = [10] * 1000 + [10**6] * 4 + [10]
    for fewest in (1, 2):
        grouped = group_into_units(sizes, SerialExecutor(), lambda size: size, fewest=fewest)
        units = [*grouped]
        assert [size for unit in units for size in unit] == sizes
        assert len(units) < 30
        assert all(unit.count(10**6) <= fewest for unit in units)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_error_stops_the_units_that_have_not_begun(workers: int) -> None:
    ran: list[int] = []
    gate = threading.Lock()

    def work(unit: int) -> int:
        with gate:
            ran.append(unit)
        if unit == 3:
            raise WeightsError("three")
        return unit

    with (
        ThreadPoolExecutor(workers) if workers else SerialExecutor() as executor,
        pytest.raises(WeightsError, match="three"),
    ):
        list(run_all(executor, work, range(1000)))
    assert len(ran) < 30


def test_units_run_on_one_core_and_give_the_others_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        inside = list(run_all(SerialExecutor(), lambda _: torch.get_num_threads(), [0]))
        with ThreadPoolExecutor(2) as executor:
            inside += run_all(executor, lambda _: torch.get_num_threads(), range(8))
        assert inside == [1] * 9
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_interrupt_is_not_a_result() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SerialExecutor().submit(interrupted)


# --- linear -------------------------------------------------------------------------------------


def test_coefficients_may_differ_between_tensors(models: Models) -> None:
    by_name = {name: (float(n), 0.0, -1.0) for n, name in enumerate(FLOATS)}
    merge = merged(models, Linear(by_name))
    for name, (a, _, c) in by_name.items():
        base = models["base"][name]
        expected = base + ((models["a"][name] - base) * a + (models["c"][name] - base) * c)
        torch.testing.assert_close(merge.tensor(name), expected)


@pytest.mark.parametrize("shape", [(3, 1), (1, 4)])
def test_coefficients_of_rows_and_columns_do_not_depend_on_where_they_are_cut(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {key: {"w": torch.randn(3, 4, generator=generator)} for key in ("base", "a", "b")}
    factors = torch.randn((2, *shape), generator=generator)
    kernel = Linear({"w": factors})
    assert kernel.cut is Cut.ROW
    merge = merged(weights, kernel)
    base = weights["base"]["w"]
    rows = [factors[n] * (weights[key]["w"] - base) for n, key in enumerate("ab")]
    whole = merge.state_dict()["w"]
    torch.testing.assert_close(whole, base + rows[0] + rows[1])
    monkeypatch.setattr("fusion_core.weights.source.BLOCK", 4)
    assert torch.equal(merge.state_dict()["w"], whole)


def test_a_missing_coefficient_is_an_error(models: Models) -> None:
    with pytest.raises(ValueError, match="shorter"):
        merged(models, Linear((1.0, 1.0))).tensor("scale")


def test_sums_in_order_do_not_depend_on_where_they_are_cut() -> None:
    rows = torch.randn(7, 10_000, generator=torch.Generator().manual_seed(0)) * 1e3
    whole = sum_in_order(rows)
    parts = [sum_in_order(rows[:, start : start + 13]) for start in range(0, 10_000, 13)]
    assert torch.equal(whole, torch.cat(parts))
    one = rows[:1].clone()
    sum_in_order(one).zero_()
    assert torch.equal(one, rows[:1])


class Delta(StateDictSource):
    """An expert that is given by its difference from the base."""

    is_delta = True


def test_a_delta_gives_experts_and_task_vectors() -> None:
    base = StateDictSource({"w": torch.tensor([1.0, 2**24])})
    tiny = torch.tensor([2**-30, 0.5])  # the base swallows both
    operands = Operands(base, {"d": Delta({"w": tiny}), "e": StateDictSource({"w": tiny})})
    piece = Piece(operands, base.infos["w"], (0, 2), Cut.ELEMENT)
    assert torch.equal(piece.task_vectors, torch.stack([tiny, tiny - base.tensor("w")]))
    assert torch.equal(piece.experts, torch.stack([base.tensor("w"), tiny]))


def test_a_delta_needs_a_base() -> None:
    info = TensorInfo("w", (1,), torch.float32)
    piece = Piece(Operands(None, {"d": Delta({"w": torch.ones(1)})}), info, (0, 1), Cut.ELEMENT)
    assert torch.equal(piece._rows(relative=True), torch.ones(1, 1))  # noqa: SLF001
    with pytest.raises(WeightsError, match="no base"):
        _ = piece.experts


def test_matrices_go_to_the_device_and_elements_stay() -> None:
    """`meta` stands for a GPU: it shows where tensors are, without having values."""
    tensors = StateDictSource({"w": torch.ones(2, 3)})
    operands = Operands(tensors, {"a": tensors}, device=torch.device("meta"))
    for cut, device in ((Cut.ELEMENT, "cpu"), (Cut.ROW, "meta"), (Cut.TENSOR, "meta")):
        piece = Piece(operands, tensors.infos["w"], (0, 6), cut)
        parts = (piece.base, piece.experts, piece.task_vectors, piece.weights, piece.uniform(0))
        assert {part.device.type for part in parts} == {device}


def test_a_prepared_merge_goes_to_another_process_with_its_surveys(
    models: Models, tmp_path: Path
) -> None:
    for name in ("base", "a"):
        save_file(models[name], tmp_path / f"{name}.safetensors")
    base, expert = (CheckpointSource(tmp_path / f"{name}.safetensors") for name in ("base", "a"))
    merge = MergedSource(Mean(), Operands(base, {"a": expert}))
    merge.prepare(SerialExecutor())
    copy = pickle.loads(pickle.dumps(merge))
    assert copy.kernel.surveys == []
    assert torch.equal(copy.tensor("scale"), merge.tensor("scale"))


class Mean(Kernel):
    """Shifts everything by the mean of the model's task vectors."""

    scope = Scope.MODEL

    def __init__(self) -> None:
        self.surveys: list[int] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"surveys": []}

    def survey(self, scan: Scan) -> float:
        self.surveys.append(scan.numel)
        total: float = scan(lambda p: float(p.task_vectors.sum()), lambda t, p: t + p, 0.0)
        return total / scan.numel

    def merge(self, piece: Piece) -> torch.Tensor:
        return piece.base + piece.state
