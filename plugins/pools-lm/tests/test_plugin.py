"""The plugin's specs, and the imports of a merge."""

from __future__ import annotations

import subprocess
import sys
from pkgutil import resolve_name
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from pools_lm import plugin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fusion_core import ModelPoolSpec, TaskPoolSpec


SPECS = [*plugin.fusion_register_model_pools(), *plugin.fusion_register_task_pools()]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_spec_names_a_class_and_its_configuration(spec: ModelPoolSpec | TaskPoolSpec) -> None:
    assert resolve_name(spec.target).config_class is resolve_name(spec.config)


def test_a_merge_alone_imports_no_transformers(
    models_of: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    pool = {"name": "causal-lm", **models_of("llama")}
    code = f"""
        import sys
        from fusion_core import run_fusion
        from fusion_testing import Mean
        run_fusion(algorithm=Mean(), model_pool={pool!r}, output={str(tmp_path / "merged")!r})
        print(*sys.modules)
    """
    line = [sys.executable, "-c", dedent(code)]
    run = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "transformers" not in run.stdout.split()
