"""Batches of tensors and of mappings: move, count, slice, join and pad them."""

from __future__ import annotations

import torch

from fusion_core import Batch


def _texts(*lengths: int) -> Batch:
    longest = max(lengths)
    mask = torch.tensor([[1] * n + [0] * (longest - n) for n in lengths])
    numbers = torch.arange(1, mask.numel() + 1).reshape(mask.shape) * mask
    return Batch({"input_ids": numbers, "attention_mask": mask, "kind": torch.ones(len(lengths))})


def test_a_batch_of_a_mapping_is_counted_sliced_and_moved() -> None:
    batch = Batch(_texts(3, 1, 2).inputs, torch.tensor([0, 1, 2]))
    assert len(batch) == 3
    part = batch.part(1, 3)
    assert len(part) == 2
    assert part.tensors["input_ids"].tolist() == [[4, 0, 0], [7, 8, 0]]
    assert part.labels is not None
    assert part.labels.tolist() == [1, 2]
    moved = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in moved.tensors.values()} == {"meta"}


def test_joining_batches_pads_shorter_examples() -> None:
    short, long = _texts(1, 2), _texts(4)
    assert short.form == long.form
    joined = Batch.joined([short, long])
    assert joined.mask is not None
    assert joined.mask.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert joined.tensors["input_ids"][:2].tolist() == [[1, 0, 0, 0], [3, 4, 0, 0]]
    assert joined.tensors["kind"].shape == (3,)


def test_without_a_mask_batches_of_different_lengths_differ_in_form() -> None:
    one, two = Batch(torch.zeros(2, 3)), Batch(torch.ones(1, 3), torch.ones(1))
    assert one.mask is None
    assert one.form == two.form != Batch(torch.zeros(2, 4)).form
    assert Batch.joined([one, two]).tensors[""].tolist() == [[0.0] * 3, [0.0] * 3, [1.0] * 3]
    assert Batch({"ids": torch.zeros(1, 3)}).form != Batch({"ids": torch.zeros(1, 4)}).form
