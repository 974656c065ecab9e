"""What layers are given is shown call by call; moments and padding: `test_moments.py`."""

from __future__ import annotations

import torch
from torch import nn

from fusion_core import Split
from fusion_core.adapting import build_live, show_inputs
from fusion_core.testing import TinyTasks, tiny_pool


def test_inputs_are_shown_in_the_order_of_calls() -> None:
    pool, task = tiny_pool("mlp"), TinyTasks()["a"]
    model = build_live(pool, pool.experts["a"], "cpu")
    batch = task.batch(0, size=5, split=Split.UNLABELED, seed=0)
    layers = {each: name for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    seen = []
    show_inputs(model, layers, task, batch, lambda *call: seen.append(call))
    (first, images), (last, states) = seen
    assert [layers[first], layers[last]] == ["1", "3"]
    assert torch.equal(images, batch.inputs.flatten(1))
    torch.testing.assert_close(states, first(images).tanh())
    assert not states.requires_grad


def test_a_live_model_is_as_wide_as_what_is_merged() -> None:
    for stored, live in (("float64", "float64"), ("float32", "float32"), ("bfloat16", "float32")):
        pool = tiny_pool("mlp", dtype=getattr(torch, stored))
        model = build_live(pool, pool.experts["a"], "cpu")
        assert next(model.parameters()).dtype is getattr(torch, live)
