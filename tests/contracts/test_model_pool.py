from __future__ import annotations

import pytest
from torch import nn

from fusion_core.errors import RecipeError
from pools_checkpoints import CheckpointsConfig, CheckpointsPool


class Seasons(CheckpointsPool):
    def task_of(self, expert: str) -> str:
        return expert.partition("-")[0]


def test_a_task_has_the_first_expert_that_was_fine_tuned_for_it() -> None:
    models = {name: nn.Linear(1, 1) for name in ("winter-1", "summer-1", "summer-2")}
    pool = Seasons(CheckpointsConfig(models=models))
    assert pool.expert_of("summer") is pool.experts["summer-1"]
    with pytest.raises(RecipeError, match="'spring'") as error:
        pool.expert_of("spring")
    assert error.value.hint == "The experts' tasks: winter, summer."
