from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fusion_core.errors import WeightsError
from fusion_core.weights import (
    BLOCK,
    CastSource,
    Cut,
    RenamedSource,
    StateDictSource,
    TensorInfo,
    assemble,
    source,
)
from fusion_core.weights.source import view_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

sizes = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@settings(max_examples=150, deadline=None)
@given(shape=sizes, cut=st.sampled_from(list(Cut)), block=st.integers(1, 64))
def test_ranges_cover_every_element_once(shape: tuple[int, ...], cut: Cut, block: int) -> None:
    info = TensorInfo("x", shape, torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "BLOCK", block)
        ranges = list(cut.ranges(info))
    assert (ranges[0][0], ranges[-1][1]) == (0, info.numel)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(ranges))
    assert all(start < stop for start, stop in ranges) or ranges == [(0, 0)]
    row = info.numel // shape[0] if shape and shape[0] else 1
    for start, stop in ranges:
        if cut is Cut.TENSOR:
            assert (start, stop) == (0, info.numel)
        elif cut is Cut.ROW and len(shape) > 1:
            assert start % max(row, 1) == stop % max(row, 1) == 0
            assert stop - start <= max(block, row)
        elif cut is Cut.ROW:
            assert (start, stop) == (0, info.numel)
        else:
            assert start % block == 0
            assert stop - start <= block


def test_blocks_are_of_the_documented_size() -> None:
    assert BLOCK == 2**19
    info = TensorInfo("x", (2**19 + 1,), torch.float32)
    assert list(Cut.ELEMENT.ranges(info)) == [(0, 2**19), (2**19, 2**19 + 1)]


def test_the_coarser_of_two_cuts() -> None:
    order = [Cut.ELEMENT, Cut.ROW, Cut.TENSOR]
    for one, other in itertools.product(order, order):
        assert one.coarser(other) is order[max(order.index(one), order.index(other))]


def test_a_state_dict_is_read_in_place() -> None:
    tensors = {
        "matrix": torch.arange(6.0).reshape(2, 3),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "scalar": torch.tensor(7),
    }
    weights = StateDictSource(tensors, label="mine")
    assert weights.describe() == "mine"
    assert weights.infos["turned"] == TensorInfo("turned", (3, 2), torch.float32)
    assert weights.read("matrix", 2, 5).tolist() == [2, 3, 4]
    assert weights.read("turned", 0, 6).tolist() == [0, 3, 1, 4, 2, 5]
    assert torch.equal(weights.tensor("turned"), tensors["turned"])
    assert weights.read("scalar", 0, 1).tolist() == [7]
    assert not weights.tensor("parameter").requires_grad
    assert weights.read("matrix", 0, 6).data_ptr() == tensors["matrix"].data_ptr()


def test_a_state_dict_holds_tensors_only() -> None:
    with pytest.raises(WeightsError, match=r"model: '_extra_state' is a dict, not a tensor"):
        StateDictSource({"_extra_state": {}}, label="model")  # type: ignore[dict-item]


def _fake() -> torch.Tensor:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(2)


UNREADABLE: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "meta": (lambda: torch.ones(2, device="meta"), "meta device, without values"),
    "lazy": (lambda: nn.LazyLinear(3).weight, "lazy parameter, without values"),
    "sparse": (lambda: torch.eye(2).to_sparse(), r"layout torch\.sparse_coo"),
    "csr": (lambda: torch.eye(2).to_sparse_csr(), r"layout torch\.sparse_csr"),
    "complex": (lambda: torch.ones(2, dtype=torch.complex64), r"torch\.complex64"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "qint8"),
    "wrapped": (_fake, "a FakeTensor, which holds no plain numbers"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")
def test_tensors_without_plain_numbers_are_refused(kind: str) -> None:
    make, message = UNREADABLE[kind]
    with pytest.raises(WeightsError, match=rf"mine: 'w' is .*{message}") as caught:
        StateDictSource({"w": make()}, label="mine")
    assert caught.value.hint


def test_copies_of_a_state_dict_are_fresh_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BLOCK", 4)
    originals = {"a": torch.arange(10.0), "b": torch.tensor(1), "c": torch.zeros(0, 3)}
    values = {name: tensor.clone() for name, tensor in originals.items()}
    opened = StateDictSource(originals)
    for copied in (opened.state_dict(), {name: opened.tensor(name) for name in originals}):
        assert copied.keys() == originals.keys()
        for name, tensor in copied.items():
            assert torch.equal(tensor, values[name])
            assert tensor.shape == values[name].shape
            tensor.fill_(5)
    assert all(torch.equal(originals[name], values[name]) for name in originals)


def test_names_can_be_changed_and_left_out() -> None:
    inner = StateDictSource({"a": torch.ones(2), "b": torch.zeros(3)}, label="inner")
    renamed = RenamedSource(inner, {"x.a": "a"})
    assert list(renamed.infos) == ["x.a"]
    assert renamed.infos["x.a"] == TensorInfo("x.a", (2,), torch.float32)
    assert torch.equal(renamed.tensor("x.a"), torch.ones(2))
    assert renamed.describe() == "inner"


def test_a_cast_rounds_once_and_only_what_it_names() -> None:
    inner = StateDictSource({"a": torch.tensor([1 + 2**-9, 3.0]), "n": torch.tensor([5])})
    infos = {**inner.infos, "a": TensorInfo("a", (2,), torch.bfloat16)}
    cast = CastSource(inner, infos, finite=True)
    assert torch.equal(assemble(cast, "a"), torch.tensor([1.0, 3.0], dtype=torch.bfloat16))
    assert assemble(cast, "n").dtype is torch.int64


def test_an_overflow_is_refused_by_name_unless_it_is_allowed() -> None:
    inner = StateDictSource({"a": torch.tensor([1e6, 1.0])}, label="big")
    infos = {"a": TensorInfo("a", (2,), torch.float16)}
    with pytest.raises(WeightsError, match=r"big in torch\.float16: tensor 'a' holds 1 values"):
        assemble(CastSource(inner, infos, finite=True), "a")
    assert assemble(CastSource(inner, infos, finite=False), "a").tolist() == [float("inf"), 1.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int8, torch.bool])
def test_memory_of_returns_the_bytes_of_a_tensor(dtype: torch.dtype) -> None:
    tensor = torch.ones(3, dtype=dtype)
    view = view_bytes(tensor)
    assert len(view) == tensor.nbytes
    assert bytes(view) == bytes(tensor.view(torch.uint8).tolist())
    assert bytes(view_bytes(torch.zeros(0, dtype=dtype))) == b""


@pytest.mark.parametrize("key", [0, None, ("a", "b"), b"a"])
def test_a_state_dict_has_tensors_by_name(key: Any) -> None:
    with pytest.raises(WeightsError, match="expected tensors by name, got the key") as caught:
        StateDictSource({"a": torch.ones(2), key: torch.ones(2)}, label="model")
    assert "state_dict()" in (caught.value.hint or "")


def test_a_state_dict_inside_another_is_named() -> None:
    with pytest.raises(WeightsError) as caught:
        StateDictSource({"model": {"a": torch.ones(2)}}, label="model")  # type: ignore[dict-item]
    assert "give the inner one" in (caught.value.hint or "")


def test_a_view_of_memory_keeps_its_tensor() -> None:
    tensor = torch.arange(6.0)
    alive, expected = weakref.ref(tensor), tensor.view(torch.uint8).tolist()
    view = view_bytes(tensor)
    del tensor
    assert alive() is not None
    assert list(view) == expected
    del view
    assert alive() is None
