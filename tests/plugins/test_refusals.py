"""Plugins that refuse a run, and what they know of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Outcome, Site

pytestmark = pytest.mark.plugins

GUARD = """
    from fusion_core import hookimpl
    from fusion_core.errors import RecipeError

    @hookimpl
    def fusion_check_run(run):
        licence = run.recipe["output"]["licence"]
        if licence == "broken":
            raise ValueError("a bug")
        if licence is None and run.path is not None:
            raise RecipeError(f"refused: {sorted((n, *c.values()) for n, c in run.cards.items())}")
"""


@pytest.fixture
def recipe(tmp_path: Path, site: Site) -> Path:
    """Return a recipe whose base is a nested recipe, where a plugin guards all runs."""
    site.install("fusion-guard", GUARD)
    for name in ("inner", "expert"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.ones(4)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {name}\n---\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "algorithm: task-arithmetic\n"
        "model_pool:\n"
        "  name: checkpoints\n"
        "  base:\n"
        "    algorithm: simple-average\n"
        "    model_pool: {name: checkpoints, models: [inner, expert]}\n"
        "  models: [expert]\n"
    )
    return path


def test_a_plugin_refuses_a_run_before_it_starts(
    recipe: Path, tmp_path: Path, fuse: Callable[..., Outcome]
) -> None:
    for command in ("check", "run"):
        done = fuse(command, recipe, "-o", tmp_path / "merged")
        assert done.code == 2
        cards = "('base/expert', 'expert'), ('base/inner', 'inner'), ('expert', 'expert')"
        assert f"error: refused: [{cards}]" in done.err
    assert not (tmp_path / "merged").exists()
    assert fuse("run", recipe, "--set", "output.path=null").code == 0
    allowed = fuse("run", recipe, "-o", tmp_path / "merged", "--set", "output.licence=mine")
    assert allowed.code == 0


def test_a_plugin_that_breaks_stops_the_run_and_is_named(
    recipe: Path, tmp_path: Path, fuse: Callable[..., Outcome]
) -> None:
    done = fuse("run", recipe, "-o", tmp_path / "merged", "--set", "output.licence=broken")
    assert done.code == 3
    assert "plugin fusion-guard failed to check the run: ValueError: a bug" in done.err
    assert not (tmp_path / "merged").exists()
