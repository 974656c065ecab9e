"""What every pool keeps, checked by the suites of fusion-core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fusion_core.testing import ModelPoolSuite, TaskPoolSuite
from pools_lm import plugin
from pools_lm.config import LanguageConfig
from pools_lm.pools import CausalPool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fusion_core import ModelPoolSpec, TaskPoolSpec

SPECS = {spec.name: spec for spec in plugin.fusion_register_model_pools()}


class LanguageSuite(ModelPoolSuite):
    pool_name: str
    family: str

    @pytest.fixture
    def spec(self) -> ModelPoolSpec:
        return SPECS[self.pool_name]

    @pytest.fixture
    def options(self, models_of: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        return models_of(self.family, self.pool_name)


class TestLlama(LanguageSuite):
    pool_name, family = "causal-lm", "llama"


class TestTied(LanguageSuite):
    pool_name, family = "causal-lm", "qwen2"


class TestSeq2Seq(LanguageSuite):
    pool_name, family = "seq2seq-lm", "t5"


class TestClassification(LanguageSuite):
    pool_name, family = "sequence-classification", "bert"


class TestEncoder(LanguageSuite):
    pool_name, family = "sentence-encoder", "bert"


class TestUnion(LanguageSuite):
    pool_name, family = "causal-lm", "llama"

    @pytest.fixture
    def options(
        self, tiny: Any, models_of: Callable[..., dict[str, Any]], tmp_path: Path
    ) -> dict[str, Any]:
        found = models_of(self.family)
        own = tiny.tokenizer()
        own.add_tokens(["<|user|>"], special_tokens=True)
        tiny.save(tmp_path / "b", tiny.live("llama", 9, rows=len(own)), own)
        return {**found, "tokenizer": "union"}


class TestHarness(TaskPoolSuite):
    @pytest.fixture
    def spec(self) -> TaskPoolSpec:
        return next(plugin.fusion_register_task_pools())

    @pytest.fixture
    def options(self, fake_harness: str) -> dict[str, Any]:
        return {"tasks": ["foxes", "bits"], "python": fake_harness}

    @pytest.fixture
    def models(self, models_of: Callable[..., dict[str, Any]]) -> CausalPool:
        return CausalPool(LanguageConfig(**models_of("llama")))
