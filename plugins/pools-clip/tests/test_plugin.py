"""The plugin's specs, and the imports of listing them."""

from __future__ import annotations

import subprocess
import sys
from pkgutil import resolve_name
from typing import TYPE_CHECKING

import pytest

from pools_clip import plugin

if TYPE_CHECKING:
    from fusion_core import ModelPoolSpec, TaskPoolSpec

SPECS = [*plugin.fusion_register_model_pools(), *plugin.fusion_register_task_pools()]
HEAVY = {"torch", "transformers", "pyarrow", "PIL", "numpy"}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_spec_names_a_class_and_its_configuration(spec: ModelPoolSpec | TaskPoolSpec) -> None:
    assert resolve_name(spec.target).config_class is resolve_name(spec.config)


def test_plugin_and_configuration_import_nothing_heavy() -> None:
    code = "import sys, pools_clip.plugin, pools_clip.config; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(run.stdout.split())


def test_the_plugin_alone_imports_no_pydantic() -> None:
    code = "import sys, pools_clip.plugin; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pydantic" not in run.stdout.split()
