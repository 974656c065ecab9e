"""What the plugin registers, and what that costs."""

from __future__ import annotations

import subprocess
import sys
from pkgutil import resolve_name
from typing import TYPE_CHECKING

import pytest

from pools_lm import plugin

if TYPE_CHECKING:
    from fusion_core import ModelPoolSpec


SPECS = [*plugin.fusion_register_model_pools()]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_spec_names_a_class_and_its_configuration(spec: ModelPoolSpec) -> None:
    assert resolve_name(spec.target).config_class is resolve_name(spec.config)


def test_a_merge_alone_imports_no_transformers() -> None:
    code = "import sys, pools_lm.pools; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"transformers", "tokenizers"} & set(run.stdout.split())
