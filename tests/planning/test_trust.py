"""No recipe runs code by itself: a plan lists what could, and runs need the user's trust."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fusion_core import ComponentConfig, RunOptions, TaskPoolSpec, load_models, plan, run_fusion
from fusion_core.commands import load_plugins
from fusion_core.errors import BrokenPluginError, FusionError, RecipeError
from fusion_core.planning.resolved_recipe import Resolved
from fusion_core.plugins.components import Component
from pools_lm.mini.pools import DATA

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from conftest import Outcome, Site

    Fuse = Callable[..., Outcome]

pytestmark = pytest.mark.plugins

NAME = "lm-eval-python"
REFUSED = f"the recipe needs trust that you have not given:\n  {NAME}: start the program ./evil"
BASE, EXPERT = str(DATA / "base"), str(DATA / "experts" / "kinds")
#: Tasks that are soon measured.
FEW = {"name": "lm-mini", "tasks": ["kinds"], "limit": 2}


@pytest.fixture(autouse=True)
def _program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create a program in the working directory that creates a file when it is started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FUSION_TRUST", raising=False)
    Path("evil").write_text("#!/bin/sh\ntouch started\n")
    Path("evil").chmod(0o755)
    write(recipe())


def recipe(**sections: Any) -> dict[str, Any]:
    """Return a recipe whose tasks are measured by that program."""
    return {
        "algorithm": "simple-average",
        "model_pool": {"name": "causal-lm", "base": BASE, "models": {"kinds": EXPERT}},
        "task_pool": {"name": "lm-eval", "python": "./evil", "tasks": ["arc_easy"]},
        "output": {"path": "out"},
        **sections,
    }


def nested() -> dict[str, Any]:
    """Return a recipe that nests such a recipe."""
    models = {"a": recipe(), "kinds": EXPERT}
    pool = {"name": "causal-lm", "base": BASE, "models": models}
    return {"algorithm": "simple-average", "model_pool": pool, "output": {"path": "out"}}


def write(content: Mapping[str, Any], path: str = "recipe.yaml") -> None:
    Path(path).write_text(json.dumps(content))


def is_started() -> bool:
    return Path("started").exists()


# --- what is shown, and never started ------------------------------------------------------------


@pytest.mark.parametrize("content", [recipe(), nested()], ids=["recipe", "nested"])
@pytest.mark.parametrize("trust", [(), ("--trust", NAME)], ids=["untrusted", "trusted"])
def test_a_check_shows_what_needs_trust_and_starts_nothing(
    fuse: Fuse, content: dict[str, Any], trust: tuple[str, ...]
) -> None:
    write(content)
    process = fuse("check", "recipe.yaml", *trust)
    rows = [line.split(maxsplit=2) for line in process.out.splitlines()]
    assert ["needs", "trust", f"{NAME}: start the program ./evil"] in rows
    assert "whether its tasks and data are there" in process.out
    assert process.code == (0 if trust else 2)
    assert trust or REFUSED in process.err
    plan_data = json.loads(fuse("run", "recipe.yaml", "--dry-run", "--json", *trust).out)
    assert plan_data["needs_trust"] == {NAME: ["start the program ./evil"]}
    assert len(plan_data["not_checked"]) == 1
    assert fuse("run", "recipe.yaml", "--print-config", *trust).code == 0
    assert not is_started()


def test_a_diagnosis_looks_at_weights_alone(fuse: Fuse, caplog: pytest.LogCaptureFixture) -> None:
    assert fuse("diagnose", "recipe.yaml", "--trust", NAME).code == 0
    assert "tasks that need trust are skipped" in caplog.text
    assert not is_started()


def test_a_scan_connects_to_no_scheduler(fuse: Fuse) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        write(recipe(task_pool={"name": "lm-mini"}, executor={"name": "dask", "address": address}))
        checked = fuse("check", "recipe.yaml", "--no-eval", "--scan", "--trust", "dask")
        untrusted = fuse("run", "recipe.yaml", "--no-eval")
        with pytest.raises(BlockingIOError):
            server.accept()
    assert f"dask: connect to the Dask scheduler {address}" in checked.out
    assert "all weights are finite" in checked.out
    assert (untrusted.code, untrusted.err.count("--trust dask")) == (2, 1)


# --- what is refused before any work -------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "content"),
    [
        (("run", "recipe.yaml"), recipe()),
        (("run", "recipe.yaml"), nested()),
        (("sweep", "recipe.yaml", "--over", "algorithm.only='*','*.0.*'"), recipe()),
        (("evaluate", "model"), recipe()),
        (("run", "recipe.yaml", "--trust", "lm-eval-include-path"), recipe()),
        (
            ("run", "recipe.yaml", "--set", "task_pool.python=./evil"),
            recipe(task_pool={"name": "lm-eval", "tasks": ["arc_easy"]}),
        ),
    ],
    ids=["run", "nested", "sweep", "evaluate", "another-name", "by-flag"],
)
def test_without_trust_nothing_starts(
    fuse: Fuse, arguments: tuple[str, ...], content: dict[str, Any]
) -> None:
    write(content)
    shutil.copytree(BASE, "model")
    shutil.copy("evil", "model")
    write(content, "model/recipe.yaml")
    process = fuse(*arguments)
    assert (process.code, REFUSED.partition("./evil")[0] in process.err) == (2, True)
    assert f"--trust {NAME} (or FUSION_TRUST={NAME};" in process.err
    assert not is_started()
    assert not Path("out").exists()


#: A plugin whose model pool unpickles; that it is made at all says that it was trusted.
PICKLES = """
    from collections.abc import Mapping
    from pathlib import Path
    from fusion_core import ModelPoolSpec, hookimpl
    from pools_checkpoints import CheckpointsConfig, CheckpointsPool

    class Config(CheckpointsConfig):
        def needs_trust(self) -> Mapping[str, str]:
            return {"pickles": "unpickle the models"}

    class Pool(CheckpointsPool):
        def __init__(self, config):
            super().__init__(config)
            Path("started").touch()

    @hookimpl
    def fusion_register_model_pools():
        names = {"target": "pickles:Pool", "config": "pickles:Config"}
        yield ModelPoolSpec(name="pickled", summary="", trust=("pickles",), **names)
"""


def test_models_of_a_recipe_are_not_made_without_trust(
    site: Site, fuse: Fuse, caplog: pytest.LogCaptureFixture
) -> None:
    site.install("pickles", PICKLES, requires=("fusion-core>=0.1,<0.2",))
    load_plugins.cache_clear()
    shutil.copytree(BASE, "model")
    pool = {"name": "pickled", "base": BASE, "models": {"kinds": EXPERT}}
    write({"algorithm": "simple-average", "model_pool": pool}, "model/recipe.yaml")
    message = "the recipe needs trust that you have not given:\n  pickles: unpickle the models"
    with pytest.raises(RecipeError, match=message):
        load_models({"model_pool": pool}, load_plugins())
    assert fuse("smoke", "model", "--prompt", "hello", "--tokens", "1").code == 0
    assert f"base and experts are not asked: {message}" in caplog.text
    assert message in fuse("evaluate", "model", "--task-pool", "lm-mini").err
    assert not is_started()
    inner = {"name": "checkpoints", "base": BASE, "models": {"inner": "model/recipe.yaml"}}
    with pytest.raises(RecipeError, match=message):
        load_models({"model_pool": inner}, load_plugins())
    load_models({"model_pool": pool}, load_plugins(), trust=frozenset({"pickles"}))
    assert is_started()


#: A plugin with a form of the output that starts a program; its creation says that it was trusted.
FORM = """
    from pathlib import Path
    from fusion_core import ComponentConfig, OutputEncoder, OutputSpec, hookimpl

    class Config(ComponentConfig):
        def needs_trust(self):
            return {"packer": "start a packer"}

    class Packed(OutputEncoder):
        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            Path("started").touch()

        def encode(self, parts):
            raise NotImplementedError

    @hookimpl
    def fusion_register_outputs():
        names = {"target": "packer:Packed", "config": "packer:Config"}
        yield OutputSpec(name="packed", summary="", trust=("packer",), **names)
"""


def test_the_form_of_a_recorded_output_is_not_made_without_trust(site: Site, fuse: Fuse) -> None:
    site.install("packer", FORM, requires=("fusion-core>=0.1,<0.2",))
    load_plugins.cache_clear()
    shutil.copytree(BASE, "model")
    write(recipe(task_pool=FEW, output={"packed": {}}), "model/recipe.yaml")
    process = fuse("evaluate", "model")
    assert (process.code, "packer: start a packer" in process.err) == (2, True)
    assert not is_started()
    fuse("evaluate", "model", "--trust", "packer")
    assert is_started()


def test_a_recipe_cannot_trust_itself(fuse: Fuse) -> None:
    write(recipe(trust=[NAME]))
    assert "trust" in fuse("run", "recipe.yaml").err.splitlines()[0]
    write(recipe(task_pool={**recipe()["task_pool"], "trust": [NAME]}))
    process = fuse("check", "recipe.yaml")
    assert (process.code, "task_pool.trust" in process.err) == (2, True)
    assert not is_started()


# --- what is allowed -----------------------------------------------------------------------------


def test_trust_by_flag_environment_or_argument_starts_the_program(
    fuse: Fuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_started_by(act: Callable[[], object]) -> bool:
        Path("started").unlink(missing_ok=True)
        act()
        return is_started()

    def from_python() -> None:
        with pytest.raises(FusionError, match="lm-eval ended"):
            run_fusion("recipe.yaml", options=RunOptions(trust=frozenset({NAME})))

    assert is_started_by(lambda: fuse("run", "recipe.yaml", "--trust", NAME))
    assert is_started_by(from_python)
    monkeypatch.setenv("FUSION_TRUST", f"dask, {NAME}")
    assert is_started_by(lambda: fuse("run", "recipe.yaml"))


def test_a_pool_object_needs_no_trust(tmp_path: Path) -> None:
    from pools_lm.config import HarnessConfig
    from pools_lm.harness.tasks import HarnessTasks

    tasks = HarnessTasks(HarnessConfig(tasks=["arc_easy"], python=str(tmp_path / "evil")))
    assert not plan(recipe(task_pool=tasks), RunOptions()).needs_trust


def test_tasks_that_nothing_reads_need_no_trust(fuse: Fuse) -> None:
    assert fuse("run", "recipe.yaml", "--no-eval").code == 0
    assert json.loads(Path("out/provenance.json").read_text())["predicate"]["trusted"] == []


def test_workers_on_this_machine_need_no_trust() -> None:
    options = RunOptions(executor={"name": "dask", "workers": 1}, evaluate=False)
    assert not plan(recipe(), options).needs_trust


# --- names ---------------------------------------------------------------------------------------


def test_an_unknown_name_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"`lm-eval-pythn` .*\ndid you mean lm-eval-python "):
        plan(recipe(), RunOptions(trust=frozenset({"lm-eval-pythn"})))
    monkeypatch.setenv("FUSION_TRUST", "everything")
    with pytest.raises(RecipeError, match="Known names: dask, lm-eval-include-path, lm-eval-py"):
        plan(recipe(), RunOptions())


def test_a_component_asks_only_under_names_that_its_spec_lists() -> None:
    class Greedy(ComponentConfig):
        def needs_trust(self) -> Mapping[str, str]:
            return {"shell": "run a shell"}

    plugin = load_plugins().plugins[0]
    spec = TaskPoolSpec(name="greedy", summary="", target="a:A", config="a:B")
    with pytest.raises(BrokenPluginError, match="its spec does not list: shell"):
        Resolved(Component(spec, plugin), Greedy(), load_plugins()).needs_trust()
