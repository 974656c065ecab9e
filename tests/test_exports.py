from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

import fusion_core
from fusion_core import commands, files, hub, weights
from fusion_core._moved import MOVED_NAMES, RENAMED

if TYPE_CHECKING:
    from types import ModuleType

pytestmark = pytest.mark.plugins

LIGHT = [
    "fusion_core",
    "fusion_core.errors",
    "fusion_core.contracts.specs",
    "fusion_core.hookspecs",
    "fusion_core.plugins",
    "fusion_core.builtin",
    "fusion_core.progress",
    "fusion_core.formatting",
    "fusion_core.hub",
    "fusion_core.weights",
    "formats_dcp.plugin",
    "fusion_adapting",
    "fusion_average.plugin",
    "fusion_linear.plugin",
    "fusion_moe.plugin",
    "fusion_regmean.plugin",
    "fusion_publish.plugin",
    "fusion_report.plugin",
    "fusion_ties.plugin",
    "fusion_tokenizer.plugin",
    "fusion_trackers.plugin",
    "pools_checkpoints",
    "pools_checkpoints.plugin",
    "recipes_fusionbench.plugin",
    "recipes_import.plugin",
    "recipes_mergekit.plugin",
]
WITHOUT_TORCH = [
    "fusion_core.recipe.config",
    "fusion_core.planning.resolution",
    "fusion_core.recipe.text",
    "fusion_core.planning.option_descriptions",
    "fusion_core.contracts.options",
    "fusion_core.builtin.executors",
    "fusion_adamerging.config",
    "fusion_average.config",
    "fusion_linear.config",
    "fusion_moe.config",
    "fusion_regmean.config",
    "fusion_ties.config",
    "pools_checkpoints.config",
]


@pytest.mark.parametrize("module", [fusion_core, commands, files, hub, weights])
def test_every_public_name_is_there_and_knows_its_home(module: ModuleType) -> None:
    assert dir(module) == sorted(module.__all__)
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, type):
            assert value.__name__ == name
            assert value.__module__.startswith("fusion_core.")
            assert value.__doc__


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fusion_core.nonsense  # type: ignore[attr-defined]
    assert not hasattr(fusion_core, "torch")


def test_the_version_is_the_distributions() -> None:
    assert fusion_core.__version__ == "0.1.0"


@pytest.mark.parametrize(
    "statement",
    [
        "import fusion_core.testing",
        "from fusion_core import testing",
        "from fusion_core.testing import tiny_pool",
        "from fusion_core.testing._models import tiny_pool",
    ],
)
def test_an_import_of_a_package_that_moved_names_its_distribution(statement: str) -> None:
    told = "fusion_core.testing moved to .*: pip install fusion-testing, and import fusion_testing"
    with pytest.raises(ImportError, match=told):
        exec(statement)


def test_a_name_that_moved_says_where_it_is() -> None:
    for name in [name for name in MOVED_NAMES if "." not in name]:
        told = re.escape(f"fusion_core.{name} moved: use {MOVED_NAMES[name]}")
        with pytest.raises(ImportError, match=told):
            exec(f"from fusion_core import {name}")


@pytest.mark.parametrize("module", [commands, files])
def test_names_that_were_split_off_say_where_they_are(module: ModuleType) -> None:
    for name in module.__all__:
        told = re.escape(f"fusion_core.{name} moved: use {module.__name__}.{name}")
        with pytest.raises(ImportError, match=told):
            exec(f"from fusion_core import {name}")


@pytest.mark.parametrize("package", RENAMED)
def test_a_renamed_name_says_the_new_one(package: str) -> None:
    for name, new in RENAMED[package].items():
        home, _, replacement = new.rpartition(".")
        moved = f"moved: use {home}.{replacement} "
        renamed = f"renamed: use {package}.{replacement}$"
        with pytest.raises(ImportError, match=moved if home else renamed):
            exec(f"from {package} import {name}")
        exec(f"from {home or package} import {replacement}")


def test_the_replacement_of_a_moved_name_exists() -> None:
    for replacement in sorted(set(MOVED_NAMES.values())):
        package, names = re.fullmatch(
            r"((?:fusion|pools)_\w+(?:\.[a-z]+)??)\.(\w+(?:\(\)\.\w+)?)", replacement
        ).groups()
        value = import_module(package)
        for name in names.replace("()", "").split("."):
            value = getattr(value, name)
        assert callable(value), replacement


def list_imports(*modules: str) -> set[str]:
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_light_modules_import_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "pydantic", "huggingface_hub", "rich", "numpy", "ruamel"}
    assert not list_imports(*LIGHT) & heavy


def test_discovery_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fusion_core.plugins.manager import load_plugins; load_plugins();"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "transformers", "pydantic", "numpy"}


def test_configurations_are_free_of_torch() -> None:
    assert not list_imports(*WITHOUT_TORCH) & {"torch", "transformers", "numpy", "huggingface_hub"}
