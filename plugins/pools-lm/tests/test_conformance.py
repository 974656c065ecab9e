"""The conformance suites, run on every pool."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from fusion_testing import ModelPoolSuite, TaskPoolSuite
from pools_lm import plugin
from pools_lm.config import LanguageConfig
from pools_lm.pools import CausalPool, Seq2SeqPool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fusion_core import ModelPool, ModelPoolSpec, TaskPoolSpec

SPECS = {spec.name: spec for spec in plugin.fusion_register_model_pools()}
TASKS = {spec.name: spec for spec in plugin.fusion_register_task_pools()}


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
        options = models_of(self.family)
        tokenizer = tiny.tokenizer()
        tokenizer.add_tokens(["<|user|>"], special_tokens=True)
        tiny.save(tmp_path / "b", tiny.live("llama", 9, rows=len(tokenizer)), tokenizer)
        return {**options, "tokenizer": "union"}


class LanguageTasksSuite(TaskPoolSuite):
    family: str
    pool_class: Any

    @pytest.fixture
    def spec(self) -> TaskPoolSpec:
        return TASKS["lm-tasks"]

    @pytest.fixture
    def models(self, models_of: Callable[..., dict[str, Any]]) -> ModelPool[Any]:
        pool: ModelPool[Any] = self.pool_class(LanguageConfig(**models_of(self.family)))
        return pool

    @pytest.fixture
    def options(self, tmp_path: Path) -> dict[str, Any]:
        words = ("fox", "lazy dog", "row", "a brown fox", "forest", "tensor", "model and row", "a")
        lines = {
            "choice": [
                {"question": f"the {word} is", "choices": ["a row", "a dog"], "answer": n % 2}
                for n, word in enumerate(words)
            ],
            "generate": [{"prompt": f"the {word} is", "answer": word} for word in words],
        }
        for name, examples in lines.items():
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, examples)))
        datasets: dict[str, dict[str, Any]] = {
            name: {"kind": name, "test": str(tmp_path / f"{name}.jsonl")} for name in lines
        }
        datasets["generate"]["max_tokens"] = 8
        return {"datasets": datasets}


class TestTasksOfLlama(LanguageTasksSuite):
    family, pool_class = "llama", CausalPool

    @pytest.fixture
    def options(self, tmp_path: Path) -> dict[str, Any]:
        (tmp_path / "texts.jsonl").write_text(
            "\n".join(json.dumps({"text": f"the quick fox {'and dog ' * n}"}) for n in range(8))
        )
        return {
            "datasets": {"t": {"kind": "perplexity", "test": str(tmp_path / "texts.jsonl")}},
            "length": 12,
        }


class TestQuestionsForLlama(LanguageTasksSuite):
    family, pool_class = "llama", CausalPool


class TestQuestionsForT5(LanguageTasksSuite):
    family, pool_class = "t5", Seq2SeqPool


class TestHarness(TaskPoolSuite):
    @pytest.fixture
    def spec(self) -> TaskPoolSpec:
        return TASKS["lm-eval"]

    @pytest.fixture
    def options(self, fake_harness: str) -> dict[str, Any]:
        return {"tasks": ["foxes", "bits"], "python": fake_harness}

    @pytest.fixture
    def models(self, models_of: Callable[..., dict[str, Any]]) -> CausalPool:
        return CausalPool(LanguageConfig(**models_of("llama")))
