"""What plugins show below the results of `fuse run`, and what becomes of it when they fail."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import save_file

from fusion_core import load_models
from fusion_core.commands import load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Outcome, Site

    Run = Callable[..., Outcome]

pytestmark = pytest.mark.plugins


@pytest.fixture
def run(models: Any, tmp_path: Path, fuse: Run) -> Run:
    for name in ("base", "a"):
        (tmp_path / name).mkdir()
        save_file(models[name], tmp_path / name / "model.safetensors")
    pool = [f"model_pool.base={tmp_path / 'base'}", f"model_pool.models=[{tmp_path / 'a'}]"]
    options = ["--algo", "simple-average", "-o", tmp_path / "out"]
    return lambda *more: fuse("run", *options, "--set", pool[0], "--set", pool[1], *more)


def looking(site: Site, body: str) -> None:
    site.install(
        "looking",
        f"""
        from fusion_core import hookimpl
        @hookimpl
        def fusion_run_shown(result, device):
            {body}
        """,
    )


def test_the_text_of_an_observer_follows_the_results(run: Run, site: Site) -> None:
    looking(site, "return f'{result.path.name} on {device}\\x1b[2J'")
    done = run()
    assert done.out.endswith("/out\n\nout on cpu\\x1b[2J\n")


@pytest.mark.parametrize("flag", ["--no-eval", "--json"])
def test_observers_are_not_called_without_evaluation_or_with_json(
    run: Run, site: Site, flag: str
) -> None:
    looking(site, "raise KeyboardInterrupt")
    done = run(flag)
    assert done.code == 0
    assert "looking" not in done.err


def test_an_observer_that_fails_is_a_warning(run: Run, site: Site) -> None:
    looking(site, "raise RuntimeError('no eyes')")
    done = run()
    assert done.code == 0
    assert done.out.endswith("/out\n")
    assert "plugin looking failed in fusion_run_shown: RuntimeError: no eyes" in done.err


def test_an_interrupt_of_an_observer_names_the_complete_model(
    run: Run, site: Site, tmp_path: Path
) -> None:
    looking(site, "raise KeyboardInterrupt")
    done = run()
    assert done.code == 130
    assert done.err.endswith(f"interrupted\nThe model is complete in {tmp_path / 'out'}.\n")


def test_the_models_of_a_recipe_are_found_again(run: Run, models: Any, tmp_path: Path) -> None:
    assert json.loads(run("--json").out)["report"] is None
    pool = load_models(load_recipe(tmp_path / "out" / "recipe.yaml"))
    sources = pool.by_name
    assert list(sources) == ["base", "a"]
    for name, source in sources.items():
        assert source.tensor("layer.bias").equal(models[name]["layer.bias"])
