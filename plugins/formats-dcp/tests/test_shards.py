"""Sharded tensors: the union of boxes, read by range."""

from __future__ import annotations

import math
import time
from itertools import pairwise, product
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st

from formats_dcp.shards import check_tiling, intersect, split_range
from fusion_core import find_model, run_fusion
from fusion_core.errors import CheckpointError
from fusion_core.weights import Cut

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from formats_dcp.shards import Box

Shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)


#: Torch 2.8 writes shards of safetensors, and trains by FSDP2 without a GPU.
_WRITTEN = pytest.mark.skipif(
    not hasattr(dcp, "HuggingFaceStorageWriter"), reason="this version of torch writes none"
)


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ("mesh", "mesh"),
        ("async", "mesh"),
        pytest.param("safetensors", "mesh", marks=_WRITTEN),
        pytest.param("fsdp", "fsdp", marks=_WRITTEN),
    ],
)
def test_tensors_of_four_ranks_are_whole(saved: str, expected: str, ranks: Path) -> None:
    tensors = torch.load(ranks / f"{expected}.pt")
    source = find_model(str(ranks / saved), "model").open()
    assert source.infos.keys() == tensors.keys()
    assert source.cut is Cut.ELEMENT
    for name, tensor in tensors.items():
        assert torch.equal(source.tensor(name), tensor)
        assert source.infos[name].dtype == tensor.dtype
        for start, stop in product(range(0, tensor.numel() + 1, 4), repeat=2):
            if start <= stop:
                part = source.read(name, start, stop)
                assert torch.equal(part, tensor.flatten()[start:stop])


def test_shards_merge_like_whole_tensors(ranks: Path) -> None:
    tensors = torch.load(ranks / "mesh.pt")
    models = {"sharded": str(ranks / "mesh"), "whole": {n: 3 * t for n, t in tensors.items()}}
    merged = run_fusion(
        algorithm="simple-average", model_pool={"name": "checkpoints", "models": models}
    )
    for name, tensor in tensors.items():
        expected = ((tensor.float() + (3 * tensor).float()) / 2).to(tensor.dtype)
        assert torch.equal(merged.weights.tensor(name), expected)


@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("mesh", "__2_0.distcp"),
        pytest.param("safetensors", "shard-00002-model-00001-of-00001.safetensors", marks=_WRITTEN),
    ],
)
def test_a_missing_file_of_a_rank_is_named(
    folder: str, file: str, ranks: Path, tmp_path: Path
) -> None:
    for path in (ranks / folder).iterdir():
        if path.name != file:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"__2_0.distcp is missing|shard 2 are missing"):
        find_model(str(tmp_path), "model").open()


def test_missing_metadata_is_named(ranks: Path, tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").write_bytes((ranks / "mesh" / "__0_0.distcp").read_bytes())
    with pytest.raises(CheckpointError, match=r"\.metadata is missing, which torch writes last"):
        find_model(str(tmp_path), "model").open()


@settings(deadline=None)
@given(Shapes, st.data())
def test_a_range_is_cut_into_boxes_in_order(shape: tuple[int, ...], data: st.DataObject) -> None:
    whole = torch.arange(math.prod(shape)).reshape(shape)
    start = data.draw(st.integers(0, whole.numel()))
    stop = data.draw(st.integers(start, whole.numel()))
    boxes = [*split_range(shape, start, stop)]
    parts = [whole[tuple(slice(*span) for span in box)].flatten() for box in boxes]
    assert torch.equal(torch.cat([whole.flatten()[:0], *parts]), whole.flatten()[start:stop])
    assert len(boxes) <= max(2 * len(shape) - 1, 1)


@settings(deadline=None)
@given(Shapes, st.randoms(use_true_random=False))
def test_a_grid_tiles_a_tensor_and_any_change_is_noticed(
    shape: tuple[int, ...], rng: random.Random
) -> None:
    cuts = [sorted({0, size, *(rng.randrange(size + 1) for _ in range(2))}) for size in shape]
    boxes: list[Box] = [*product(*(list(pairwise(edges)) for edges in cuts))]
    rng.shuffle(boxes)
    check_tiling("w", shape, boxes, "model")
    with pytest.raises(CheckpointError, match="stored twice"):
        check_tiling("w", shape, [*boxes, boxes[0]], "model")
    if len(boxes) > 1:
        with pytest.raises(CheckpointError, match="is missing"):
            check_tiling("w", shape, boxes[1:], "model")
        everything: Box = tuple((0, size) for size in shape)
        with pytest.raises(CheckpointError, match="stored twice"):
            check_tiling("w", shape, [everything, boxes[0]], "model")
    assert all(intersect(one, other) is None for one, other in pairwise(boxes))


def test_many_overlapping_shards_are_refused_soon() -> None:
    boxes: list[Box] = [((0, stop),) for stop in range(1, 20_001)]
    started = time.process_time()
    with pytest.raises(CheckpointError, match="stored twice"):
        check_tiling("w", (20_000,), boxes, "model")
    assert time.process_time() - started < 5


def test_shards_outside_of_the_shape_and_without_a_grid_are_refused() -> None:
    with pytest.raises(CheckpointError, match="lies outside of its shape"):
        check_tiling("w", (2, 2), [((0, 2), (0, 3))], "model")
    diagonal: list[Box] = [((n, n + 1), (n, n + 1)) for n in range(500)]
    with pytest.raises(CheckpointError, match="form no grid"):
        check_tiling("w", (500, 500), diagonal, "model")
