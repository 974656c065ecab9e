"""Examples and activations that are not finite are errors that name their place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core.errors import FusionError
from fusion_testing import TinyTasks

if TYPE_CHECKING:
    from fusion_core import Batch

LAYER = r"the inputs of the layer of 'embed\.weight'"


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("regmean", LAYER),
        ("regmean-plus-plus", LAYER),
        ("lot", LAYER),
        ("cat", LAYER),
        ("fisher", "the predictions"),
        ("featcal", LAYER),
    ],
)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_examples_are_errors_that_name_layer_and_task(
    method: str, values: str, bad: float, stacks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(TinyTasks()["b"])  # the other tasks have another class
    original = kind.batch

    def batch(self: Any, step: int, **options: Any) -> Batch:
        result = original(self, step, **options)
        result.inputs[-1] = bad
        return result

    monkeypatch.setattr(kind, "batch", batch)
    stages: Any = {"name": method, "samples": 6}
    if method == "featcal":
        stages = ["task-arithmetic", stages]
    with pytest.raises(FusionError, match=f"^{values} are NaN or infinite on task 'b'") as caught:
        stacks.merge(stages, stacks.pool())
    assert "unlabeled examples of task 'b'" in str(caught.value.hint)
