"""Statistics of experts keep one expert live at a time, and have no side effects."""

from __future__ import annotations

import copy
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from padded_words import SAMPLES, SIZE, WordTask, WordTasks, is_hooked, word_pool

from fusion_adapting import moments, squared_gradients
from fusion_core.contracts.selected_pool import SelectedPool
from fusion_core.errors import RecipeError
from fusion_testing import TinyTasks, tiny_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STATISTICS = [moments, squared_gradients]
OPTIONS: dict[str, Any] = {"samples": SAMPLES, "batch_size": SIZE}


@pytest.mark.parametrize("statistics", STATISTICS)
def test_one_expert_is_live_at_a_time_and_its_results_are_released(
    statistics: Callable[..., Iterator[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = word_pool(0, torch.float32)
    built: list[weakref.ref[Any]] = []
    build = type(pool).build

    def counting_build(*args: Any, **options: Any) -> Any:
        assert not any(model() for model in built), "an earlier expert is still live"
        model = build(*args, **options)
        built.append(weakref.ref(model))
        return model

    monkeypatch.setattr(type(pool), "build", counting_build)
    results: list[weakref.ref[Any]] = []
    for _, by_tensor in statistics(pool, WordTasks(), **OPTIONS):
        assert not any(reference() for reference in [*built, *results])
        results += [weakref.ref(result) for result in by_tensor.values()]
        del by_tensor
    assert len(built) == 3
    assert len(results) > 3
    assert not any(result() for result in results)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_the_pool_and_the_global_generator_do_not_change(
    statistics: Callable[..., Iterator[Any]],
) -> None:
    pool = word_pool(0, torch.float32)
    models = list(pool.config.models.values())
    states = [copy.deepcopy(model.state_dict()) for model in models]
    models[0].requires_grad_(False)
    generator = torch.random.get_rng_state()
    list(statistics(pool, WordTasks(), **OPTIONS))
    assert torch.equal(generator, torch.random.get_rng_state())
    for model, state in zip(models, states, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert not is_hooked(model)
        assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in models[0].parameters())


@pytest.mark.parametrize("statistics", STATISTICS)
def test_an_expert_without_a_task_is_refused_before_any_work(
    statistics: Callable[..., Iterator[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WordTask, "batch", None)
    pool = tiny_pool("mlp", experts=3)
    with pytest.raises(RecipeError, match="unknown task 'c'"):
        next(statistics(pool, TinyTasks(("a", "b"))))


@pytest.mark.parametrize("statistics", STATISTICS)
def test_tensors_that_are_not_merged_have_no_statistics(
    statistics: Callable[..., Iterator[Any]],
) -> None:
    pool = SelectedPool(tiny_pool("mlp"), {"1.weight"})
    for _, by_tensor in statistics(pool, TinyTasks(), **OPTIONS):
        assert by_tensor.keys() == {"1.weight"}
