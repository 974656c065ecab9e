"""Values that are not finite are refused, with the parameter or the values as their cause."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from padded_words import WordTask
from torch import nn

from fusion_adapting import compute_moments, compute_squared_gradients
from fusion_core import Batch, Split
from fusion_core.errors import FusionError, WeightsError
from fusion_testing import TinyTasks, tiny_pool


class Rooted(nn.Module):
    """Takes the root of a layer's outputs, whose gradient at zero is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(48, 5), nn.Linear(5, 4)
        nn.init.zeros_(self.first.weight)
        nn.init.zeros_(self.first.bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(inputs.flatten(1)).sqrt())


def measure(statistics: Any, model: nn.Module) -> None:
    task = TinyTasks()["a"]
    batch = task.batch(0, size=3, split=Split.UNLABELED, seed=0)
    statistics(model.eval(), dict(model.named_parameters()), task, [batch])


@pytest.mark.parametrize("statistics", [compute_moments, compute_squared_gradients])
def test_a_bad_parameter_is_named(statistics: Any) -> None:
    model = tiny_pool("mlp").config.base
    model[1].bias.data[0] = torch.nan
    model[3].weight.data[0] = torch.nan
    with pytest.raises(WeightsError, match=r"task 'a': tensor '1\.bias' holds NaN or infinity"):
        measure(statistics, model)


def test_bad_padding_is_not_an_input() -> None:
    class Padded(nn.Linear):
        def forward(self, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            del attention_mask
            return super().forward(states)

    model, states = Padded(4, 2), torch.ones(2, 3, 4)
    states[1, 2] = torch.nan
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    batch = Batch({"states": states, "attention_mask": mask})
    parameters = dict(model.named_parameters())
    (moments,) = compute_moments(model, parameters, WordTask("a"), [batch]).values()
    assert torch.equal(moments.total, torch.full((4, 4), 5.0))


def test_infinite_gradients_of_finite_predictions_are_refused() -> None:
    with pytest.raises(FusionError, match=r"squared gradients of 'first\.weight' are NaN or inf"):
        measure(compute_squared_gradients, Rooted())
