"""The conformance suites, run on the CLIP pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fusion_testing import ModelPoolSuite, TaskPoolSuite
from pools_clip import plugin
from pools_clip.config import ClipConfig
from pools_clip.pool import ClipPool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from fusion_core import ModelPoolSpec, TaskPoolSpec


class TestClipPool(ModelPoolSuite):
    @pytest.fixture
    def spec(self) -> ModelPoolSpec:
        return next(plugin.fusion_register_model_pools())

    @pytest.fixture
    def options(self, base: Path, experts: dict[str, str]) -> dict[str, Any]:
        return {"base": str(base), "models": experts}


class TestClipClassification(TaskPoolSuite):
    @pytest.fixture
    def spec(self) -> TaskPoolSpec:
        return next(plugin.fusion_register_task_pools())

    @pytest.fixture
    def options(
        self,
        base: Path,
        dataset: dict[str, Any],
        rows: list[Any],
        write_parquet: Callable[[Path, list[Any]], str],
        tmp_path: Path,
    ) -> dict[str, Any]:
        parts = {"test": rows[:8], "unlabeled": rows[8:14], "train": rows[14:]}
        files = {split: write_parquet(tmp_path / split, part) for split, part in parts.items()}
        pets = {**dataset, **files}
        return {"clip": str(base), "datasets": {"pets": pets, "again": pets}}

    @pytest.fixture
    def model(self, base: Path, experts: dict[str, str]) -> nn.Module:
        pool = ClipPool(ClipConfig(base=str(base), models=experts))
        return pool.build(pool.base)
