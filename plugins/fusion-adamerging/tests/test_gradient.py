"""The exact gradient equals autograd through the merge, in float64, for several architectures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.func import functional_call

from fusion_adamerging.adamerging import AdaMerging, entropy
from fusion_adamerging.config import AdaMergingConfig
from fusion_adamerging.live_merge import LiveMerge
from fusion_core.task_pool import Split

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from fusion_core.checkpoints import CheckpointsPool


class Merged(torch.nn.Module):
    """The textbook way: coefficients in the graph, functional weights, autograd does the rest."""

    def __init__(self, live: LiveMerge, coefficients: Tensor) -> None:
        super().__init__()
        self.inner = live.model
        self.weights = {
            name: (leaf.base + column @ leaf.task_vectors).view_as(leaf.parameter)
            for leaf, column in zip(live.leaves, coefficients.T, strict=True)
            for name in leaf.names
        }
        # What a live model is asked before it runs: its dtype.
        self.dtype_of = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return functional_call(self.inner, self.weights, (inputs,), tie_weights=False)


@pytest.mark.parametrize("kind", ["mlp", "convolution", "transformer"])
def test_gradient_equals_autograd_through_the_merge(
    kind: str, make_pool: Callable[..., CheckpointsPool], tasks: Any
) -> None:
    live = LiveMerge(make_pool(kind, experts=3), torch.device("cpu"), torch.float64)
    generator = torch.Generator().manual_seed(3)
    shape = (3, len(live.leaves))
    coefficients = torch.rand(shape, generator=generator, dtype=torch.float64)

    live.merge(coefficients)
    for objective in _objectives(tasks, live.model):
        objective.backward()
    ours = live.gradient()

    reference = coefficients.clone().requires_grad_(True)
    sum(_objectives(tasks, Merged(live, reference))).backward()
    torch.testing.assert_close(ours, reference.grad, rtol=1e-5, atol=1e-12)
    assert ours.abs().max() > 1e-4, "a zero gradient would agree with anything"


def _objectives(tasks: Any, model: nn.Module) -> list[Tensor]:
    batches = [task.batch(5, size=8, split=Split.UNLABELED, seed=1) for task in tasks]
    return [entropy(task.logits(model, each)) for task, each in zip(tasks, batches, strict=True)]


def test_tied_parameters_are_one_leaf(make_pool: Callable[..., CheckpointsPool]) -> None:
    live = LiveMerge(make_pool("transformer"), torch.device("cpu"))
    assert ("embedding.weight", "output.weight") in [leaf.names for leaf in live.leaves]


def test_parameters_that_no_expert_changed_are_no_leaves(
    make_pool: Callable[..., CheckpointsPool],
) -> None:
    pool = make_pool("mlp")
    for module in pool.config.models.values():
        module.load_state_dict({**module.state_dict(), "1.weight": pool.config.base[1].weight})
    pool = type(pool)(pool.config)
    live = LiveMerge(pool, torch.device("cpu"))
    assert "1.weight" not in {name for leaf in live.leaves for name in leaf.names}
    assert not dict(live.model.named_parameters())["1.weight"].requires_grad


def test_entropy_of_a_uniform_prediction_is_log_of_the_classes() -> None:
    logits = torch.tensor([[2.0, 2.0, 2.0, 2.0], [100.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor(4.0).log() / 2  # the second row is certain
    torch.testing.assert_close(entropy(logits), expected)


def test_cosine_schedule_goes_from_lr_to_nearly_zero() -> None:
    search = AdaMerging(AdaMergingConfig(steps=100, lr=0.01))
    assert search.learning_rate(0) == 0.01
    assert search.learning_rate(50) == pytest.approx(0.005)
    assert 0 < search.learning_rate(99) < 1e-5
    constant = AdaMerging(AdaMergingConfig(schedule="constant", lr=0.02))
    assert constant.learning_rate(99) == 0.02
