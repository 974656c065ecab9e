"""Faults planted into sound pools of images and of texts: a check catches each, and says what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import planted_pools
import pytest
from suites import run_suites

if TYPE_CHECKING:
    from collections.abc import Mapping

TESTS = """
    import pytest
    from fusion_core import ModelPoolSpec, TaskPoolSpec
    from fusion_core.testing import ModelPoolSuite, TaskPoolSuite
    from planted_pools import MODEL_FAULTS, WORLDS, ComponentConfig

    def suite(name, base, spec, **fixtures):
        fixtures = {key: pytest.fixture(value) for key, value in fixtures.items()}
        globals()[name] = type(name, (base,), {"spec": pytest.fixture(lambda self: spec), **fixtures})

    for name, world in WORLDS.items():
        about = {"name": name.replace("_", "-"), "summary": "Planted."}
        tasks = TaskPoolSpec(
            **about, target=f"planted_pools:{world.tasks.__name__}", config="planted_pools:Options"
        )
        models = ModelPoolSpec(
            **about,
            target=f"planted_pools:{world.models.__name__}",
            config="fusion_core.recipe.config:ComponentConfig",
        )
        live = lambda self, world=world: world.models(ComponentConfig())
        suite(f"Test_{name}", TaskPoolSuite, tasks, models=live)
        if name in {"images", "texts", *MODEL_FAULTS}:
            suite(f"Test_{name}_models", ModelPoolSuite, models)
"""

CAUGHT_BY: Mapping[str, str] = {}

#: Checks of packages and options, which a module beside the tests is not made for.
_OF_PACKAGES = ("plugin", "package", "listing", "options", "option")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    root = tmp_path_factory.mktemp("planted")
    (root / "site").mkdir()
    source = Path(planted_pools.__file__).read_text(encoding="utf-8")
    (root / "site" / "planted_pools.py").write_text(source, encoding="utf-8")
    faults = [f"(Test_{fault} and {check})" for fault, check in CAUGHT_BY.items()]
    packaging = " or ".join(_OF_PACKAGES)
    sound = f"((Test_images or Test_texts) and not ({packaging}))"
    return run_suites(root, TESTS, [sound, *faults])


@pytest.mark.parametrize("fault", CAUGHT_BY)
def test_a_planted_fault_is_caught_by_the_check_that_is_about_it(
    planted: dict[str, dict[str, str]], fault: str
) -> None:
    found = {**planted.get(fault, {}), **planted.get(f"{fault}_models", {})}
    assert "To mend it: " in found.get(CAUGHT_BY[fault], ""), found


@pytest.mark.parametrize("world", ["images", "images_models", "texts", "texts_models"])
def test_sound_pools_pass(planted: dict[str, dict[str, str]], world: str) -> None:
    assert planted[world] == {}
