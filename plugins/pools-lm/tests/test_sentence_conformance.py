"""The conformance suite, run on the sentence task pools."""

from __future__ import annotations

import json
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from fusion_testing import TaskPoolSuite
from pools_lm import plugin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fusion_core import ModelPool, TaskPoolSpec

SPECS = {spec.name: spec for spec in plugin.fusion_register_model_pools()}
TASKS = {spec.name: spec for spec in plugin.fusion_register_task_pools()}


class SentenceSuite(TaskPoolSuite):
    untrained_experts = "the tiny encoders are random"
    pool_name: str
    family: str
    models_name: str
    more_options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def spec(self) -> TaskPoolSpec:
        return TASKS[self.pool_name]

    @pytest.fixture
    def options(self, tiny: Any, tmp_path: Path) -> dict[str, Any]:
        words = " ".join(tiny.texts).split()
        files = {}
        for split in self.splits:
            order = words if split == "test" else words[::-1]
            rows = [
                {"text": " ".join(order[n : 3 * n + 1]), "label": n % 2, "score": n,
                 "sentence1": " ".join(order[n : n + 3]),
                 "sentence2": " ".join(order[n + 20 : n + 24])}
                for n in range(12)
            ]  # fmt: skip
            path = tmp_path / f"{split}.jsonl"
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            files[split] = str(path)
        return {"datasets": dict.fromkeys(("a", "b"), files), **self.more_options}

    @property
    def splits(self) -> tuple[str, ...]:
        return ("test",) if self.pool_name == "sts" else ("test", "train")

    @pytest.fixture
    def models(self, models_of: Callable[..., dict[str, Any]]) -> ModelPool[Any]:
        pool_class = resolve_name(SPECS[self.models_name].target)
        return pool_class(pool_class.config_class(**models_of(self.family, self.models_name)))


class TestOwnHead(SentenceSuite):
    pool_name, models_name, family = "sentence-classification", "sequence-classification", "bert"


class TestHeadOfADecoder(SentenceSuite):
    pool_name, models_name, family = "sentence-classification", "sequence-classification", "gpt2"
    more_options: ClassVar[dict[str, Any]] = {"head": "expert"}


class TestProbe(SentenceSuite):
    pool_name, models_name, family = "sentence-classification", "sentence-encoder", "bert"


class TestSimilarity(SentenceSuite):
    pool_name, models_name, family = "sts", "sentence-encoder", "bert"
