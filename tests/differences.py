"""The differences between models that alignment reports."""

from __future__ import annotations

from typing import Any

import pytest

from fusion_core.errors import AlignmentError
from fusion_core.recipe.config import AlignmentPolicy
from pools_checkpoints import CheckpointsConfig, CheckpointsPool


def warnings(base: Any, *models: Any, **policy: Any) -> tuple[str, ...]:
    by_name = {f"m{n}": path for n, path in enumerate(models)}
    pool = CheckpointsPool(CheckpointsConfig(base=base, models=by_name))
    return pool.aligned(AlignmentPolicy(**policy)).warnings


def rows(base: Any, *models: Any) -> list[str]:
    with pytest.raises(AlignmentError) as caught:
        warnings(base, *models)
    assert "alignment.config=warn" in (caught.value.hint or "")
    return [row.strip() for row in caught.value.message.splitlines()[1:]]
