"""The suite of model pools, run on directories and on live models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from fusion_core.weights import materialise, stage_output
from fusion_testing import MODELS, ModelPoolSuite, tiny_pool
from pools_checkpoints import plugin

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core import ModelPoolSpec

_UNKNOWN_CLASS = "the pool does not know which class its files belong to"


class TestCheckpointsOnDisk(ModelPoolSuite):
    expected_failures: ClassVar[dict[str, str]] = dict.fromkeys(
        [
            "test_a_live_model_has_the_weights",
            "test_a_live_model_has_the_weights_that_it_is_built_from",
            "test_every_expert_is_built_from_its_own_weights",
            "test_every_tensor_of_a_live_model_has_values",
            "test_a_live_model_has_the_dtype_that_is_asked_for",
            "test_a_live_model_is_on_the_device_that_is_asked_for",
            "test_differences_are_built_as_the_models_that_they_make",
            "test_a_pool_with_merges_in_the_places_of_models_builds_those",
            "test_live_models_are_independent",
            "test_building_refuses_what_does_not_fit",
            "test_building_leaves_global_state_alone",
            "test_a_merge_is_a_model_of_the_pool",
        ],
        _UNKNOWN_CLASS,
    )

    @pytest.fixture
    def spec(self) -> ModelPoolSpec:
        (spec,) = plugin.fusion_register_model_pools()
        return spec

    @pytest.fixture
    def options(self, tmp_path: Path) -> Mapping[str, Any]:
        for name, source in tiny_pool(experts=2).by_name.items():
            with stage_output(tmp_path / name, overwrite=False) as staging:
                materialise(source, staging, shard_size=2000)
                staging.commit(overwrite=False)
        models = {name: str(tmp_path / name) for name in ("a", "b")}
        return {"base": str(tmp_path / "base"), "models": models}


class TestLiveCheckpoints(ModelPoolSuite):
    expected_failures: ClassVar[dict[str, str]] = {
        "test_options_survive_a_recipe": "a live model cannot be written into a recipe"
    }

    @pytest.fixture
    def spec(self) -> ModelPoolSpec:
        (spec,) = plugin.fusion_register_model_pools()
        return spec

    @pytest.fixture(params=list(MODELS))
    def options(self, request: pytest.FixtureRequest) -> Mapping[str, Any]:
        config = tiny_pool(request.param).config
        return {"base": config.base, "models": config.models}
