from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from fusion_core.contracts.specs import (
    AlgorithmSpec,
    CommandSpec,
    ComponentSpec,
    ExecutorSpec,
    ModelPoolSpec,
    TaskPoolSpec,
)
from fusion_core.errors import (
    AmbiguousComponentError,
    BrokenPluginError,
    PluginError,
    RecipeError,
    UnknownComponentError,
)
from fusion_core.planning.resolution import resolve_component
from fusion_core.plugins.distributions import Plugin, PluginStatus
from fusion_core.plugins.manager import PluginManager, load_plugins
from fusion_core.plugins.ownership import COMPONENTS
from fusion_core.recipe.config import Choice

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from pathlib import Path

    from conftest import Outcome, Site

GOOD = """
    from fusion_core import AlgorithmSpec, hookimpl

    @hookimpl
    def fusion_register_algorithms():
        yield AlgorithmSpec(
            name="{name}", summary="", target="{target}", config="fake.config:Config"
        )
"""


def good(name: str, target: str = "fake.module:Class") -> str:
    return GOOD.format(name=name, target=target)


def discovered(block: tuple[str, ...] = ()) -> PluginManager:
    manager = PluginManager()
    manager.discover(block=block)
    return manager


def plugin_of(manager: PluginManager, distribution: str) -> Plugin:
    (match,) = (plugin for plugin in manager.plugins if plugin.distribution == distribution)
    return match


def names(manager: PluginManager) -> set[str]:
    return {component.qualified_name for component in manager.components(AlgorithmSpec)}


def assert_others_work(manager: PluginManager) -> None:
    """The core and a healthy neighbour are there, whatever became of the plugin under test."""
    assert manager.find(ExecutorSpec, "threads").plugin.distribution == "fusion-core"
    assert manager.find(AlgorithmSpec, "healthy").qualified_name == "zz-healthy/healthy"


# --- what can be wrong with a plugin ------------------------------------------------------------

BROKEN = {
    "import-error": ("import no_such_module_at_all", "ModuleNotFoundError", "no_such_module"),
    "syntax-error": ("def (", "SyntaxError", ""),
    "system-exit": ("raise SystemExit(3)", "SystemExit", "3"),
    "wrong-spec-type": (
        """
        from fusion_core import TaskPoolSpec, hookimpl
        @hookimpl
        def fusion_register_algorithms():
            return [TaskPoolSpec(name="a", summary="", target="a:b", config="a:b")]
        """,
        "TypeError",
        "expected AlgorithmSpec",
    ),
    "returns-nothing": (
        """
        from fusion_core import hookimpl
        @hookimpl
        def fusion_register_algorithms(): ...
        """,
        "TypeError",
        "",
    ),
    "bad-name": (good("Not_Kebab"), "ValueError", "kebab-case"),
    "misspelled-hook": (
        """
        from fusion_core import hookimpl
        @hookimpl
        def fusion_register_algoritms():
            return []
        """,
        "PluginValidationError",
        "fusion_register_algoritms",
    ),
    "unmarked-hook": (
        """
        def fusion_register_algorithms():
            return []
        """,
        "TypeError",
        "lacks the decorator @hookimpl",
    ),
    "wrong-arguments": (
        """
        from fusion_core import hookimpl
        @hookimpl
        def fusion_register_algorithms(nonsense):
            return []
        """,
        "PluginValidationError",
        "nonsense",
    ),
    "raising-hook": (
        """
        from fusion_core import hookimpl
        @hookimpl
        def fusion_register_algorithms():
            raise RuntimeError("no luck")
        """,
        "RuntimeError",
        "no luck",
    ),
    "raising-late": (
        """
        from fusion_core import AlgorithmSpec, hookimpl
        @hookimpl
        def fusion_register_algorithms():
            yield AlgorithmSpec(name="half", summary="", target="a:b", config="a:b")
            raise RuntimeError("half way")
        """,
        "RuntimeError",
        "half way",
    ),
    "exiting-hook": (
        """
        from fusion_core import hookimpl
        @hookimpl
        def fusion_register_model_pools():
            raise SystemExit
        """,
        "SystemExit",
        "",
    ),
    "twice": (
        """
        from fusion_core import AlgorithmSpec, hookimpl
        @hookimpl
        def fusion_register_algorithms():
            spec = AlgorithmSpec(name="double", summary="", target="a:b", config="a:b")
            return [spec, spec]
        """,
        "ValueError",
        "'double' twice",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_stays_alone(site: Site, case: str) -> None:
    code, error, detail = BROKEN[case]
    site.install("bad-one", code)
    site.install("zz-healthy", good("healthy"))
    manager = discovered()
    plugin = plugin_of(manager, "bad-one")
    assert plugin.status is PluginStatus.BROKEN
    assert type(plugin.error).__name__ == error
    assert plugin.detail.startswith(error)
    assert detail in plugin.detail
    assert plugin.components == []
    assert manager.get_plugin("bad-one") is None
    assert_others_work(manager)


def test_a_healthy_plugin_is_described(site: Site) -> None:
    module = site.install("Some.Thing", good("some"), version="3.2", module="some_thing")
    plugin = plugin_of(discovered(), "some-thing")
    assert (plugin.status, plugin.version, plugin.module) == (PluginStatus.LOADED, "3.2", module)
    assert plugin.summary == "A fake."
    assert plugin.detail == ""
    assert [component.name for component in plugin.components] == ["some"]
    assert plugin.seconds > 0


def test_an_interrupt_during_discovery_is_not_swallowed(site: Site) -> None:
    site.install("interrupting", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        discovered()


def test_plugins_come_in_the_order_of_their_names(site: Site) -> None:
    for name in ("zeta-x", "alpha-x", "mid-x"):
        site.install(name, good(name))
    distributions = [plugin.distribution for plugin in discovered().plugins]
    assert distributions == sorted(distributions)
    assert {"zeta-x", "alpha-x", "mid-x", "fusion-core"} <= set(distributions)


# --- names --------------------------------------------------------------------------------------


def test_a_name_of_two_plugins_is_ambiguous_and_its_full_names_work(site: Site) -> None:
    site.install("one-x", good("clash", "one.module:First"))
    site.install("two-x", good("clash", "two.module:Second"))
    manager = discovered()
    with pytest.raises(AmbiguousComponentError, match="one-x/clash, two-x/clash") as caught:
        manager.find(AlgorithmSpec, "clash")
    assert caught.value.exit_code == 3
    assert manager.find(AlgorithmSpec, "one-x/clash").spec.target == "one.module:First"
    assert manager.find(AlgorithmSpec, "two-x/clash").spec.target == "two.module:Second"


def test_an_alias_finds_its_component_and_clashes_like_a_name(site: Site) -> None:
    code = good("original").replace('summary=""', 'summary="", aliases=("other-name",)')
    site.install("one-x", code)
    assert discovered().find(AlgorithmSpec, "other-name").spec.name == "original"
    site.install("two-x", good("other-name"))
    with pytest.raises(AmbiguousComponentError, match="one-x/original, two-x/other-name"):
        discovered().find(AlgorithmSpec, "other-name")


def test_kinds_do_not_share_names(site: Site) -> None:
    code = """
        from fusion_core import AlgorithmSpec, ModelPoolSpec, TaskPoolSpec, hookimpl
        KEYS = {"name": "same", "summary": "", "target": "a:b", "config": "a:b"}
        @hookimpl
        def fusion_register_algorithms():
            return [AlgorithmSpec(**KEYS)]
        @hookimpl
        def fusion_register_model_pools():
            return [ModelPoolSpec(**KEYS)]
        @hookimpl
        def fusion_register_task_pools():
            return [TaskPoolSpec(**KEYS)]
    """
    site.install("all-kinds", code)
    manager = discovered()
    for kind in (AlgorithmSpec, ModelPoolSpec, TaskPoolSpec):
        assert type(manager.find(kind, "same").spec) is kind


def test_an_unknown_name_brings_close_ones_and_what_is_not_loaded(site: Site) -> None:
    site.install("bad-one", "raise ImportError('libfoo is missing')")
    site.install("blocked-one", good("blocked"))
    site.install("picky-one", good("picky"), requires=("fusion-core>=99",))
    site.install("zz-healthy", good("healthy"))
    with pytest.raises(UnknownComponentError) as caught:
        discovered(("blocked-one",)).find(AlgorithmSpec, "helthy")
    error = caught.value
    assert error.exit_code == 3
    assert error.message == "unknown algorithm 'helthy'; did you mean healthy?"
    assert error.hint is not None
    assert "bad-one (broken: ImportError: libfoo is missing)" in error.hint
    assert "blocked-one (blocked" in error.hint
    assert "picky-one (incompatible: needs fusion-core>=99" in error.hint


@pytest.mark.plugins
def test_an_unknown_name_without_close_ones_brings_the_command_that_lists_them() -> None:
    with pytest.raises(UnknownComponentError) as caught:
        discovered().find(AlgorithmSpec, "qqqqqq")
    assert caught.value.message == "unknown algorithm 'qqqqqq'"
    assert caught.value.hint == "See: fuse list algorithms"
    with pytest.raises(UnknownComponentError, match=r"Installed: .*serial, threads"):
        discovered().find(ExecutorSpec, "qqqqqq")


# --- what is never imported ---------------------------------------------------------------------


def canary(path: Path) -> str:
    return f"open({str(path)!r}, 'w').close()\n"


@pytest.mark.parametrize(
    "requirement",
    [
        "fusion-core>=99",
        "fusion_core<0.1",
        "Fusion.Core ==7",
        "fusion-core (>=2,<3)",
        "fusion-core!=0.1.0",
    ],
)
def test_an_incompatible_plugin_is_never_imported(
    site: Site, tmp_path: Path, requirement: str
) -> None:
    site.install("picky-one", canary(tmp_path / "woken"), requires=("torch", requirement))
    plugin = plugin_of(discovered(), "picky-one")
    assert plugin.status is PluginStatus.INCOMPATIBLE
    assert plugin.detail.endswith("this is 0.1.0")
    assert not (tmp_path / "woken").exists()


@pytest.mark.parametrize(
    "requirement",
    [
        "fusion-core>=0.1",
        "fusion-core<0.2,>=0.1",
        "fusion-core",
        "fusion-core>=99; extra == 'all'",
        "fusion-core>=99; python_version < '3'",
        "fusion-core-extras>=99",
        "fusion-corelib>=99",
    ],
)
def test_a_compatible_plugin_is_loaded(site: Site, requirement: str) -> None:
    site.install("easy-one", good("easy"), requires=(requirement,))
    plugin = plugin_of(discovered(), "easy-one")
    assert (plugin.status, plugin.detail) == (PluginStatus.LOADED, "")


@pytest.mark.parametrize("blocked", ["quiet-one", "Quiet_One", "*"])
@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_blocked_plugin_is_never_imported(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, blocked: str
) -> None:
    site.install("quiet-one", canary(tmp_path / "woken"))
    if how == "environment":
        monkeypatch.setenv("FUSION_BLOCK_PLUGINS", f" {blocked} ,fusion-core")
    manager = discovered((blocked,) if how == "argument" else ())
    assert plugin_of(manager, "quiet-one").status is PluginStatus.BLOCKED
    assert not (tmp_path / "woken").exists()
    assert manager.find(ExecutorSpec, "threads")


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_name_that_blocks_nothing_is_an_error(
    site: Site, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    site.install("quiet-one", good("quiet"))
    if how == "environment":
        monkeypatch.setenv("FUSION_BLOCK_PLUGINS", "quite-one")
    with pytest.raises(PluginError, match="'quite-one'; did you mean quiet-one") as caught:
        discovered(("quite-one",) if how == "argument" else ())
    assert caught.value.hint == "See: fuse list-plugins"


def test_the_core_cannot_be_blocked() -> None:
    manager = discovered(("fusion-core", "*"))
    assert plugin_of(manager, "fusion-core").status is PluginStatus.LOADED
    assert names(manager) == set()


def test_a_hook_may_have_another_name(site: Site) -> None:
    code = good("renamed").replace("@hookimpl", '@hookimpl(specname="fusion_register_algorithms")')
    site.install("renamed-one", code.replace("def fusion_register_algorithms", "def methods"))
    assert discovered().find(AlgorithmSpec, "renamed")


def test_a_lazy_module_is_not_woken_up(site: Site) -> None:
    code = (
        good("lazy")
        + """
    def __dir__():
        return [*globals(), "Heavy"]

    def __getattr__(name):
        raise SystemExit(f"woken up by {name}")
    """
    )
    site.install("lazy-one", code)
    manager = discovered()
    assert plugin_of(manager, "lazy-one").detail == ""
    assert manager.find(AlgorithmSpec, "lazy")


# --- odd installations --------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["other_module", "two_points"])
def test_a_second_entry_point_of_one_distribution_is_refused(site: Site, second: str) -> None:
    site.install(
        "two-points",
        good("first"),
        entry_points={"a": "two_points", "b": second},
        files={"other_module.py": good("second")},
    )
    manager = discovered()
    first, other = (plugin for plugin in manager.plugins if plugin.distribution == "two-points")
    assert first.status is PluginStatus.LOADED
    assert other.status is PluginStatus.BROKEN
    assert "one entry point" in other.detail
    assert manager.find(AlgorithmSpec, "first")
    assert manager.get_plugin("two-points") is not None


def test_leftovers_of_a_broken_installation_do_not_stop_discovery(site: Site) -> None:
    site.install("zz-healthy", good("healthy"))
    site.install("half-gone", good("half"))
    (site.path / "half_gone-1.0.dist-info" / "METADATA").unlink()
    assert_others_work(discovered())


@pytest.mark.parametrize(
    "requirement", ["fusion-core >= banana", "fusion-core >=1 ]", "fusion-core>=1; x"]
)
def test_a_malformed_requirement_is_its_plugins_problem(site: Site, requirement: str) -> None:
    site.install("mangled-one", good("mangled"), requires=(requirement,))
    site.install("zz-healthy", good("healthy"))
    manager = discovered()
    assert plugin_of(manager, "mangled-one").status is PluginStatus.BROKEN
    assert_others_work(manager)


@pytest.mark.parametrize("content", ["[fusion_core.plugins]\nnonsense\n", "\x00[", "a = b\n"])
def test_a_malformed_entry_point_file_is_its_plugins_problem(site: Site, content: str) -> None:
    site.install("mangled-one", good("mangled"))
    (site.path / "mangled_one-1.0.dist-info" / "entry_points.txt").write_text(content)
    site.install("zz-healthy", good("healthy"))
    assert_others_work(discovered())


def test_the_first_of_two_installations_on_the_path_wins(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("twin-x", good("older"), version="1.0")
    nearer = type(site)(tmp_path / "nearer")
    nearer.path.mkdir()
    nearer.install("twin-x", good("newer"), version="2.0", module="twin_x_new")
    monkeypatch.syspath_prepend(nearer.path)
    plugin = plugin_of(discovered(), "twin-x")
    assert (plugin.version, [component.name for component in plugin.components]) == (
        "2.0",
        ["newer"],
    )


# --- components ---------------------------------------------------------------------------------


def test_a_class_that_cannot_be_imported_is_its_plugins_fault(site: Site) -> None:
    site.install("empty-x", good("hollow", "no_such_package:Thing"))
    component = discovered().find(AlgorithmSpec, "hollow")
    with pytest.raises(BrokenPluginError, match=r"empty-x 1\.0 cannot be imported") as caught:
        component.load_class()
    assert caught.value.exit_code == 3
    with pytest.raises(BrokenPluginError, match=r"'fake\.config:Config'"):
        component.load_config()


CLASSES = """
from fusion_core import Algorithm, ComponentConfig

class Config(ComponentConfig): ...
class Unrelated: ...
class Abstract(Algorithm): ...
class Failing(Algorithm):
    def __init__(self, config):
        raise {raised}
    def run(self, pool, context): ...
THING = 3
"""

ODD_CLASSES = {
    "no class": (
        "THING",
        "Config",
        "expected a subclass of Algorithm at 'odd_classes:THING'",
    ),
    "another class": ("Unrelated", "Config", "expected a subclass of Algorithm"),
    "a configuration as an algorithm": ("Config", "Config", "expected a subclass of Algorithm"),
    "abstract": ("Abstract", "Config", "does not define run"),
    "no configuration": ("Failing", "Unrelated", "expected a subclass of ComponentConfig"),
    "fails": ("Failing", "Config", "cannot be made: KeyError: 'x'"),
}


@pytest.mark.parametrize(("target", "config", "message"), ODD_CLASSES.values(), ids=ODD_CLASSES)
def test_a_class_that_does_not_keep_the_contract_is_its_plugins_fault(
    site: Site, target: str, config: str, message: str
) -> None:
    code = good("odd", f"odd_classes:{target}").replace("fake.config:", "odd_classes:")
    site.install(
        "odd-x",
        code.replace(":Config", f":{config}"),
        files={"odd_classes.py": CLASSES.format(raised="KeyError('x')")},
    )
    with pytest.raises(BrokenPluginError, match=re.escape(message)) as caught:
        resolve_component(AlgorithmSpec, Choice(name="odd"), discovered(), section="").create()
    assert str(caught.value).startswith("algorithm 'odd' of plugin odd-x 1.0 cannot be ")


@pytest.mark.parametrize("raised", ["RecipeError('no')", "MemoryError", "KeyboardInterrupt"])
def test_errors_that_are_not_a_plugins_fault_pass_unchanged(site: Site, raised: str) -> None:
    code = good("odd", "odd_classes:Failing").replace("fake.config:", "odd_classes:")
    classes = CLASSES.format(raised=raised) + "from fusion_core.errors import RecipeError\n"
    site.install("odd-x", code, files={"odd_classes.py": classes})
    with pytest.raises((RecipeError, MemoryError, KeyboardInterrupt)):
        discovered().find(AlgorithmSpec, "odd").create(None)


# --- executors ----------------------------------------------------------------------------------

CLUSTER = """
from concurrent.futures import ThreadPoolExecutor
from fusion_core import ComponentConfig, ExecutorSpec, hookimpl

class Config(ComponentConfig):
    nodes: int = 1

class Cluster(ThreadPoolExecutor):
    def __init__(self, config):
        super().__init__(config.nodes)

def make_nothing(config):
    return 7

THING = 3

@hookimpl
def fusion_register_executors():
    yield ExecutorSpec(
        name="cluster", summary="", target="cluster_x:Cluster", config="cluster_x:Config"
    )
"""


def executor_called(name: str, **options: object) -> Executor:
    choice = Choice(name=name, **options)
    resolved = resolve_component(ExecutorSpec, choice, discovered(), section="executor")
    executor: Executor = resolved.create()
    return executor


def test_a_plugin_can_bring_an_executor(site: Site) -> None:
    site.install("cluster-x", CLUSTER)
    for name in ("cluster", "cluster-x/cluster"):
        with executor_called(name, nodes=2) as executor:
            assert executor.submit(lambda: 5).result() == 5


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("make_nothing", "cannot be used: expected Executor, got 7"),
        ("THING", "expected a subclass of Executor at 'cluster_x:THING', got 3"),
        ("Config", "expected a subclass of Executor"),
        ("Nothing", "cannot be imported from 'cluster_x:Nothing'"),
    ],
)
def test_a_target_that_is_not_an_executor_is_its_plugins_fault(
    site: Site, target: str, message: str
) -> None:
    site.install("cluster-x", CLUSTER.replace("x:Cluster", f"x:{target}"))
    with pytest.raises(BrokenPluginError, match=re.escape(message)):
        executor_called("cluster")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("threads", {"workers": 0}, "executor.workers = 0: expected a value greater than"),
        ("threads", {"workers": "2"}, "executor.workers = '2': expected an integer"),
        ("threads", {"wokers": 2}, "executor.wokers: unknown option; did you mean workers?"),
    ],
)
def test_executors_refuse_what_they_do_not_know(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises((RecipeError, UnknownComponentError), match=re.escape(message)):
        executor_called(name, **options)


@pytest.mark.parametrize(
    ("name", "options"), [("threads", {}), ("threads", {"workers": 3}), ("serial", {})]
)
def test_the_cores_executors_work(name: str, options: dict[str, int]) -> None:
    with executor_called(name, **options) as executor:
        assert list(executor.map(abs, [-1, -2])) == [1, 2]


def test_plugins_are_discovered_once_in_a_process(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    discover: Callable[..., None] = PluginManager.discover
    monkeypatch.setattr(
        PluginManager, "discover", lambda self, **keys: (calls.append(keys), discover(self, **keys))
    )
    assert load_plugins() is load_plugins()
    assert load_plugins(frozenset({"*"})) is not load_plugins()
    assert len(calls) == 2
    assert site.path.is_dir()


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        ("SystemExit(9)", "SystemExit: 9"),
        ("RecipeError('no server')", "RecipeError: no server"),
        ("WeightsError('no weights')", "WeightsError: no weights"),
    ],
)
def test_nothing_that_a_life_cycle_hook_raises_ends_the_run(
    site: Site, caplog: pytest.LogCaptureFixture, raised: str, message: str
) -> None:
    site.install(
        "leaving-one",
        f"""
        from fusion_core import hookimpl
        from fusion_core.errors import RecipeError, WeightsError
        @hookimpl
        def fusion_run_started():
            raise {raised}
        """,
    )
    discovered().notify("fusion_run_started", run="the run")
    assert f"leaving-one failed in fusion_run_started: {message}" in caplog.text


def test_output_of_a_plugins_import_goes_to_stderr(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.install(
        "chatty-one", "print('hello from chatty')\n" + good("chatty").replace("\n    ", "\n")
    )
    assert plugin_of(discovered(), "chatty-one").status is PluginStatus.LOADED
    assert capsys.readouterr() == ("", "hello from chatty\n")


OURS = (AlgorithmSpec, ModelPoolSpec, TaskPoolSpec, CommandSpec)


@pytest.mark.plugins
def test_the_components_of_our_plugins_are_listed() -> None:
    for kind in OURS:
        brought: dict[str, set[str]] = {}
        for component in discovered().components(kind):
            if component.plugin.distribution != "fusion-core":
                names = {component.spec.name, *component.spec.aliases}
                brought.setdefault(component.plugin.distribution, set()).update(names)
        known = {
            name: set(kinds[kind.kind]) for name, kinds in COMPONENTS.items() if kind.kind in kinds
        }
        assert known == brought


@pytest.mark.parametrize("name", ["elsewhere", "fusion-elsewhere/elsewhere"])
@pytest.mark.parametrize("kind", OURS)
def test_the_name_of_a_missing_plugins_component_says_what_to_install(
    kind: type[ComponentSpec], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMPONENTS, "fusion-elsewhere", {kind.kind: ("elsewhere",)})
    with pytest.raises(UnknownComponentError, match="unknown ") as caught:
        discovered().find(kind, name)
    assert "Install the plugin that provides it: pip install fusion-elsewhere" in str(caught.value)


@pytest.mark.plugins
def test_a_blocked_plugin_needs_no_installation() -> None:
    with pytest.raises(UnknownComponentError) as caught:
        discovered(("fusion-ties",)).find(AlgorithmSpec, "ties")
    assert "Not loaded: fusion-ties (blocked" in str(caught.value)
    assert "pip install" not in str(caught.value)


def test_all_plugins_can_be_required(site: Site) -> None:
    discovered().require_all()
    site.install("bad-one", "raise ImportError('libfoo is missing')")
    site.install("picky-one", good("picky"), requires=("fusion-core>=99",))
    site.install("blocked-one", "raise RuntimeError")
    with pytest.raises(BrokenPluginError) as caught:
        discovered(("blocked-one",)).require_all()
    assert caught.value.message.splitlines() == [
        "plugin bad-one is broken: ImportError: libfoo is missing",
        "plugin picky-one is incompatible: needs fusion-core>=99, this is 0.1.0",
    ]


def test_a_hook_of_a_newer_core_may_be_optional(site: Site) -> None:
    site.install(
        "early-one",
        """
        from fusion_core import hookimpl
        @hookimpl(optionalhook=True)
        def fusion_something_of_the_future(run):
            pass
        """,
    )
    assert plugin_of(discovered(), "early-one").status is PluginStatus.LOADED


# --- as users see it ----------------------------------------------------------------------------


@pytest.fixture
def troubled(site: Site, fuse: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Install one plugin for each thing that can be wrong; return what calls a new process's."""
    for case, (code, _, _) in BROKEN.items():
        site.install(f"bad-{case}", code)
    site.install("picky-one", good("picky"), requires=("fusion-core>=99",))
    site.install("slow-one", "import time; time.sleep(0.6)\n")
    site.install("clash-a", good("clash"), entry_points={"same": "clash_a"})
    site.install(
        "clash-b",
        good("clash").replace('summary=""', 'summary="", reference="arXiv:1"'),
        entry_points={"same": "clash_b"},
    )

    def run(*arguments: str) -> Outcome:
        load_plugins.cache_clear()
        return fuse(*arguments)

    return run


def test_every_problem_of_a_plugin_is_shown_with_its_cause(
    troubled: Callable[..., Outcome],
) -> None:
    out = troubled("list-plugins", "-v").out
    for case, (_, error, detail) in BROKEN.items():
        (row,) = (line for line in out.splitlines() if line.startswith(f"bad-{case} "))
        assert error in row
        assert detail in out
        assert f"\nbad-{case}:\nTraceback" in out
    assert "needs fusion-core>=99, this is 0.1.0" in out
    assert "slow-one: importing slow_one took" in out
    assert "several plugins provide algorithm 'clash': clash-a/clash, clash-b/clash" in out
    for command in (("--help",), ("run", "--help"), ("list", "algorithms")):
        assert troubled(*command).code == 0
    assert "checkpoints" in troubled("list", "pools").out


def test_strict_plugins_stop_what_would_go_on_without_them(
    troubled: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = troubled("--strict-plugins", "list", "pools")
    assert (refused.code, refused.out) == (3, "")
    assert "plugin bad-import-error is broken: ModuleNotFoundError" in refused.err
    assert "plugin picky-one is incompatible" in refused.err
    assert troubled("--strict-plugins", "run", "--help").code == 0
    monkeypatch.setenv("FUSION_STRICT_PLUGINS", "1")
    assert troubled("list", "pools").code == 3
    monkeypatch.setenv("FUSION_BLOCK_PLUGINS", "*")
    assert "threads" in troubled("list", "executors").out
