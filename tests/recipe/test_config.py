from __future__ import annotations

import json
import re
import shlex
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from fusion_core.errors import AmbiguousComponentError, PluginError, RecipeError
from fusion_core.planning.option_descriptions import describe_options, recipe_schema
from fusion_core.planning.resolution import resolve
from fusion_core.plugins.manager import PluginManager
from fusion_core.plugins.ownership import COMPONENTS
from fusion_core.plugins.recipe_files import load_recipe
from fusion_core.recipe.assignments import override
from fusion_core.recipe.config import (
    Choice,
    ComponentConfig,
    OutputOptions,
    Recipe,
    choice_of,
)
from fusion_core.recipe.per_expert import ExpertWeights
from fusion_core.recipe.text import dump_yaml, load_yaml
from fusion_core.recipe.validation import validate
from pools_checkpoints import CheckpointsConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Site

#: The project's own plugins that are installed. Tests of the core alone have none.
#: Our plugins, except the pool that takes models of any kind.
OURS = [
    name for name in COMPONENTS if find_spec(name.replace("-", "_")) and name != "pools-checkpoints"
]

HUGE = pytest.param(10**5000, id="more digits than Python prints")

TOY = """
    from fusion_core import AlgorithmSpec, ModelPoolSpec, TaskPoolSpec, hookimpl

    @hookimpl
    def fusion_register_algorithms():
        keys = {"target": "toy_config:Toy", "config": "toy_config:ToyConfig"}
        yield AlgorithmSpec(name="toy", summary="", aliases=("play",), **keys)

    @hookimpl
    def fusion_register_model_pools():
        keys = {"target": "toy_config:Pool", "config": "toy_config:PoolConfig"}
        yield ModelPoolSpec(name="toys", summary="", default_task_pool="games", **keys)

    @hookimpl
    def fusion_register_task_pools():
        keys = {"target": "toy_config:Tasks", "config": "toy_config:TasksConfig"}
        yield TaskPoolSpec(name="games", summary="", **keys)
"""
TOY_CONFIG = """
    from typing import Annotated, Literal
    from pydantic import Field
    from fusion_core import Algorithm, ComponentConfig

    class ToyConfig(ComponentConfig):
        density: Annotated[float, Field(ge=0, le=1)] = 0.2
        \"\"\"What is kept,
        of everything.\"\"\"
        mode: Literal["fast", "slow"] = "fast"
        steps: int = 3

    class PoolConfig(ComponentConfig):
        size: int = 8

    class TasksConfig(ComponentConfig):
        rounds: int = 1

    class Toy(Algorithm):
        def run(self, pool, context): ...
"""


@pytest.fixture
def toys(site: Site) -> PluginManager:
    site.install("toy-plugin", TOY, files={"toy_config.py": TOY_CONFIG})
    return _manager()


def _manager() -> PluginManager:
    manager = PluginManager()
    manager.discover(block=OURS)
    return manager


def refused(raw: dict[str, Any], plugins: PluginManager) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        resolve(raw, plugins)
    assert caught.value.exit_code == 2
    return caught.value.message.splitlines()


# --- resolving ----------------------------------------------------------------------------------


def test_a_recipe_is_resolved_with_every_default(toys: PluginManager) -> None:
    resolved = resolve({"algorithm": "play", "model_pool": "toys"}, toys)
    (algorithm,) = resolved.stages
    assert algorithm is not None
    assert algorithm.name == "toy"
    assert algorithm.as_recipe() == {
        "name": "toy",
        "density": 0.2,
        "mode": "fast",
        "steps": 3,
    }
    assert resolved.task_pool is not None
    assert resolved.task_pool.name == "games"
    assert algorithm.create().config.density == 0.2


@pytest.mark.parametrize(("needs", "expected"), [("labeled", "games"), ("unlabeled", "riddles")])
def test_a_model_pool_has_another_task_pool_for_unlabeled_data(
    site: Site, needs: str, expected: str
) -> None:
    plugin = TOY.replace('aliases=("play",)', f"needs_tasks={needs!r}")
    plugin = plugin.replace('="games", **', '="games", unlabeled_task_pool="riddles", **')
    plugin += """
        yield TaskPoolSpec(name="riddles", summary="", **keys)
"""
    site.install("toy-plugin", plugin, files={"toy_config.py": TOY_CONFIG})
    tasks = resolve({"algorithm": "toy", "model_pool": "toys"}, _manager()).task_pool
    assert tasks is not None
    assert tasks.name == expected


def test_all_errors_come_at_once(toys: PluginManager) -> None:
    raw = {
        "algorithm": {"name": "toy", "desnity": 1, "mode": "medium"},
        "model_pool": {"name": "toys", "size": "big"},
        "task_pool": {"name": "games", "rounds": 1.5},
        "seed": -1,
        "output": {"shard_size": "0GB", "dtpye": "float16"},
        "alignment": {"nan": "maybe"},
        "algoritm": 1,
    }
    lines = refused(raw, toys)
    for pattern in (
        r"^algorithm\.desnity: unknown option; did you mean density\?$",
        r"^algorithm\.mode = 'medium': .*'fast' or 'slow'",
        r"^model_pool\.size = 'big': .*integer",
        r"^task_pool\.rounds = 1.5: .*integer",
        r"^seed = -1: .*greater",
        r"^output\.shard_size = '0GB': ",
        r"^output\.dtpye: unknown option; did you mean dtype\?$",
        r"^alignment\.nan = 'maybe': ",
        r"^algoritm: unknown option; did you mean algorithm\?$",
    ):
        assert sum(bool(re.search(pattern, line)) for line in lines) == 1, (pattern, lines)
    assert len(lines) == 9


def test_errors_in_names_and_options_come_together(toys: PluginManager) -> None:
    lines = refused({"algorithm": {"name": "toy", "x": 1}, "model_pool": "nonsense"}, toys)
    assert lines == [
        "algorithm.x: unknown option; known: density, mode, steps, only, skip, overrides, by_depth",
        "unknown model pool 'nonsense'",
    ]


def test_a_lone_plugin_error_stays_one(toys: PluginManager) -> None:
    with pytest.raises(PluginError) as caught:
        resolve({"algorithm": "nonsense", "model_pool": "toys"}, toys)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"model_pool": "toys"}, ["algorithm: required"]),
        ({"algorithm": None, "model_pool": "toys"}, ["algorithm.name: required"]),
        ({"algorithm": {}, "model_pool": "toys"}, ["algorithm.name: required"]),
        ({"algorithm": {"density": 1}, "model_pool": "toys"}, ["algorithm.name: required"]),
        ({"algorithm": {}, "model_pool": "toys", "seed": "x"}, ["seed = ", "algorithm.name: req"]),
        ({"algorithm": 5, "model_pool": "toys"}, ["algorithm = 5: "]),
        ({"algorithm": [], "model_pool": {"name": 3}},
         ["algorithm = []: expected at least 1 entry", "model_pool.name"]),
        ({"algorithm": "toy", "model_pool": {}, "seed": "x"}, ["seed = 'x'", "model_pool: req"]),
        ({"algorithm": "toy", "model_pool": ["toys"], "x": 1}, ["model_pool = ['toys']", "x: "]),
    ],
)  # fmt: skip
def test_malformed_sections_are_named_once(
    toys: PluginManager, raw: dict[str, Any], expected: list[str]
) -> None:
    lines = [line for line in refused(raw, toys) if not line.startswith(("fewer", " "))]
    for start in expected:
        assert sum(line.startswith(start) for line in lines) == 1, lines
    assert len(lines) == len(expected), lines


def test_a_live_section_is_not_looked_up(toys: PluginManager) -> None:
    resolved = resolve(
        {"algorithm": {}, "model_pool": {}}, toys, live=frozenset({"algorithm", "model_pool"})
    )
    assert resolved.stages == ()
    assert resolved.model_pool is None
    assert resolved.task_pool is None


@pytest.mark.parametrize("value", ["x", 1.5, -1, 2**63, HUGE, None, [1]])
def test_seeds_are_integers(toys: PluginManager, value: object) -> None:
    (line,) = refused({"algorithm": "toy", "model_pool": "toys", "seed": value}, toys)
    assert line.startswith("seed = ")


# --- defaults -----------------------------------------------------------------------------------


def default_pool(name: str) -> str:
    return TOY.replace('name="toys"', f'name="{name}", default=True').replace('"toy"', f'"{name}"')


def test_the_only_default_pool_is_used(site: Site) -> None:
    site.install("one-x", default_pool("one"), files={"toy_config.py": TOY_CONFIG})
    manager = _manager()
    resolved = resolve({"algorithm": "one"}, manager)
    assert resolved.model_pool is not None
    assert resolved.model_pool.name == "one"


def test_several_default_pools_are_an_error_that_names_them(site: Site) -> None:
    site.install("one-x", default_pool("one"), files={"toy_config.py": TOY_CONFIG})
    site.install("two-x", default_pool("two"))
    manager = _manager()
    (line,) = refused({"algorithm": "one"}, manager)
    assert line == "model_pool: required (one-x/one, two-x/two)"


def test_no_default_pool_is_an_error(site: Site) -> None:
    site.install("toy-plugin", TOY, files={"toy_config.py": TOY_CONFIG})
    manager = _manager()
    assert refused({"algorithm": "toy"}, manager) == [
        "model_pool: required (no installed pool is the default)"
    ]
    lines = refused({"algorithm": {"name": "toy", "x": 1}}, manager)
    assert [line.split(":")[0] for line in lines] == ["algorithm.x", "model_pool"]


def test_pool_options_without_a_name_mean_checkpoints(toys: PluginManager) -> None:
    resolved = resolve({"algorithm": "toy", "model_pool": {"models": ["a", "b"]}}, toys)
    assert resolved.model_pool is not None
    assert resolved.model_pool.as_recipe() == {
        "name": "checkpoints",
        "base": None,
        "models": {"a": "a", "b": "b"},
    }
    assert resolved.task_pool is None


def test_task_options_without_a_name_go_to_the_pools_own_tasks(toys: PluginManager) -> None:
    raw = {"algorithm": "toy", "model_pool": "toys", "task_pool": {"rounds": 4}}
    resolved = resolve(raw, toys)
    assert resolved.task_pool is not None
    assert resolved.task_pool.as_recipe() == {"name": "games", "rounds": 4}
    raw = {"algorithm": "toy", "model_pool": {"models": ["a"]}, "task_pool": {"rounds": 4}}
    (line,) = refused(raw, toys)
    assert line.startswith("task_pool.name: required")


def test_empty_sections_are_as_good_as_none(toys: PluginManager) -> None:
    raw = {"algorithm": "toy", "model_pool": "toys", "task_pool": None}
    assert resolve(raw, toys).task_pool == resolve({**raw, "task_pool": {}}, toys).task_pool


def test_an_ambiguous_component_is_recorded_by_its_full_name(site: Site) -> None:
    site.install("toy-plugin", TOY, files={"toy_config.py": TOY_CONFIG})
    site.install("toy-rival", TOY)
    manager = _manager()
    with pytest.raises(RecipeError, match="several plugins"):
        resolve({"algorithm": "toy", "model_pool": "toys"}, manager)
    with pytest.raises(AmbiguousComponentError):
        resolve({"algorithm": "toy", "model_pool": {"models": ["a"]}}, manager)
    resolved = resolve({"algorithm": "toy-rival/toy", "model_pool": {"models": ["a"]}}, manager)
    (algorithm,) = resolved.stages
    assert algorithm is not None
    assert algorithm.as_recipe()["name"] == "toy-rival/toy"


# --- YAML ---------------------------------------------------------------------------------------


def test_a_recipe_may_be_long() -> None:
    overrides = "".join(f"\n  - {{match: 'model.layers.{n}.*', density: 0.5}}" for n in range(1500))
    recipe = f"algorithm:\n name: ties\n overrides:{overrides}"
    assert len(recipe) > 2**16
    assert len(load_yaml(recipe, origin="here")["algorithm"]["overrides"]) == 1500


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("0.20", 0.2),
        ("5", 5),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("", None),
        ("[1, a, 2.5]", [1, "a", 2.5]),
        ("{a: 1, b: [2]}", {"a": 1, "b": [2]}),
        ("5GB", "5GB"),
        ("12:30", "12:30"),
        ("0o17", 15),
        ("'5'", "5"),
    ],
)
def test_set_takes_yaml_1_2_values(text: str, value: object) -> None:
    assert override({}, [f"algorithm.x={text}"]) == {"algorithm": {"x": value}}


def test_set_keeps_what_it_does_not_name() -> None:
    recipe = {"algorithm": "ties", "output": {"dtype": "float16"}, "seed": 1}
    changed = override(recipe, ["algorithm.density=0.3", "output.path=a=b", "seed=2"])
    assert changed == {
        "algorithm": {"name": "ties", "density": 0.3},
        "output": {"dtype": "float16", "path": "a=b"},
        "seed": 2,
    }
    assert recipe == {"algorithm": "ties", "output": {"dtype": "float16"}, "seed": 1}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("density", "algorithm.density"),
        ("densty", "algorithm.density"),
        ("only", "algorithm.only"),
        ("size", "model_pool.size"),
        ("rounds", "task_pool.rounds"),
        ("dtype", "output.dtype"),
        ("vocab", "alignment.vocab"),
        ("algoritm", "algorithm"),
    ],
)
def test_an_option_without_its_section_gets_a_suggestion(
    toys: PluginManager, name: str, meant: str
) -> None:
    sections = {"algorithm": "toy", "model_pool": "toys", "task_pool": "games"}
    (line,) = refused({**sections, name: 1}, toys)
    assert line == f"{name}: unknown option; did you mean {meant}?"


def test_an_option_that_no_section_has_gets_a_list_of_known_ones(toys: PluginManager) -> None:
    (line,) = refused({"algorithm": "toy", "model_pool": "toys", "zzz": 1}, toys)
    assert line.endswith(
        "known: algorithm, model_pool, task_pool, executor, seed, output, alignment, lock"
    )


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("merge_method: ties\nmodels: [{model: a, parameters: {weight: 1}}]", "mergekit"),
        ("slices: [{sources: [{model: a, layer_range: [0, 4]}]}]", "mergekit"),
        ("_target_: fusion_bench.method.SimpleAverageAlgorithm", "FusionBench"),
        ("method: {name: ties}\nmodelpool: {}\ntaskpool: {}", "FusionBench"),
        ("defaults: [{method: dummy}, _self_]\nhydra: {}", "FusionBench"),
    ],
)
def test_a_file_of_another_program_is_recognised(
    toys: PluginManager, text: str, program: str
) -> None:
    with pytest.raises(
        RecipeError, match=f"^expected a recipe, found a configuration of {program} "
    ) as caught:
        resolve(load_yaml(text, origin=""), toys)
    (page,) = re.findall(r"See (.*\.md)\.$", str(caught.value.hint))
    assert (Path(__file__).parents[2] / page).is_file()


def test_a_slip_in_a_recipe_does_not_make_it_another_programs(toys: PluginManager) -> None:
    with pytest.raises(RecipeError, match="did you mean model_pool") as caught:
        resolve(load_yaml("algorithm: {name: ties}\nmodelpool: {}", origin=""), toys)
    assert "FusionBench" not in str(caught.value)


def test_a_later_set_wins_and_sections_are_made() -> None:
    quoted = override({}, ['algorithm.weights."v1.5"=2', 'algorithm.weights."a".b=1'])
    assert quoted == {"algorithm": {"weights": {"v1.5": 2, "a": {"b": 1}}}}
    changed = override({"model_pool": None}, ["model_pool.models.a=x", "model_pool.models.a=y"])
    assert changed == {"model_pool": {"models": {"a": "y"}}}


@pytest.mark.parametrize(
    "text", ["", "algorithm", "=3", ".=3", "a..b=3", "a.=3", "a=[", "a={a: 1, a: 2}"]
)
def test_invalid_assignments_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        override({}, [text])


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        *((text, json.dumps(text)) for text in ("*norm*", "&a", "!a", "%a", "@a", "`a", "**")),
        *((text, json.dumps(text)) for text in ("#a", "a #b", "&a b", "|", "a: *b", "[a", ",a")),
        ("[*a, 'b']", "[\"*a\", 'b']"),
        ('"a', '"\\"a"'),
    ],
)
def test_text_that_has_to_be_quoted_is_shown_quoted(text: str, quoted: str) -> None:
    with pytest.raises(RecipeError, match=r"^--set algorithm\.only: ") as caught:
        override({}, [f"algorithm.only={text}"])
    (command,) = re.findall("--set (.*)$", str(caught.value.hint))
    assert shlex.split(command) == [f"algorithm.only={quoted}"]
    means = override({}, shlex.split(command))["algorithm"]["only"]
    assert means == (["*a", "b"] if text.startswith("[*") else text)


@pytest.mark.parametrize("present", [["a", "b"], 5, True])
def test_set_replaces_no_list_or_number_by_a_mapping(present: object) -> None:
    with pytest.raises(RecipeError, match=r"cannot set option 'c': .* is not a mapping"):
        override({"model_pool": {"models": present}}, ["model_pool.models.c=x"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\na: 2", "duplicate key"),
        ("a: {b: 1, b: 2}", "duplicate key"),
        ("a: [", "expected"),
        ("a: 1\n---\nb: 2", "one document"),
        ("!!python/object/apply:os.system ['true']", "tag"),
        ("!!python/name:os.system", "tag"),
        ("!thing {a: 1}", "tag"),
        ("a: !!bool maybe", "maybe"),
        ("a: !!int x", "invalid literal"),
        ("a: 2001-99-99", "month"),
        ("{{a: 1}: 2}", "unhashable"),
        ("a: \x00", "character"),
        ("a: " + "9" * 5000, "digits"),
        ("a: 0x" + "f" * 5000, "digits"),
        ("- " * 2000, "recursion"),
        ("a: *nowhere", "undefined alias"),
    ],
)
def test_yaml_that_is_not_plain_data_is_refused(text: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem) as caught:
        load_yaml(text, origin="the recipe")
    assert str(caught.value).startswith("the recipe")
    assert ": invalid YAML" in str(caught.value)


def _bomb(line: str) -> str:
    levels = [line.format(n=n, all=", ".join([f"*a{n - 1}"] * 10)) for n in range(1, 30)]
    return "\n".join(["a0: &a0 {k: v}", *levels])


@pytest.mark.parametrize(
    "text",
    [
        _bomb("a{n}: &a{n} [{all}]"),
        _bomb("a{n}: &a{n} {{<<: [{all}]}}"),
        "a: &a [*a]",
        "a: &a {b: *a}",
        "[" * 60_000,
        "a: " + "x" * 2**20,
        "a: [" + "1," * 10**6 + "]",
    ],
    ids=["sequences", "merge-keys", "self", "self-mapping", "deep", "long", "many"],
)
def test_yaml_bombs_are_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        load_yaml(text, origin="the recipe")


def test_aliases_of_honest_size_work() -> None:
    text = "common: &c {density: 0.2}\na: {<<: *c, scale: 1}\nb: *c\n"
    assert load_yaml(text, origin="") == {
        "common": {"density": 0.2},
        "a": {"density": 0.2, "scale": 1},
        "b": {"density": 0.2},
    }


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab:- \n[]{}&*!<'\"#|>%@,?~019.", max_size=40))
def test_any_text_is_data_or_a_recipe_error(text: str) -> None:
    try:
        load_yaml(text, origin="fuzz")
    except RecipeError as error:
        assert error.message.startswith("fuzz")  # noqa: PT017 - any other exception fails the test


# Control characters and line separators in keys are lost by the YAML library; no recipe has them.
texts = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=12)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | texts
    | st.sampled_from(
        ["no", "1e-3", "null", "~", "0x1f", "012", ".5", "1_0", "a: b", "- x", "#", ""]
    )
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(texts, values, max_size=4))
def test_dumped_data_loads_unchanged(data: dict[str, Any]) -> None:
    assert load_yaml(dump_yaml(data), origin="") == data


def test_a_dump_keeps_the_order_and_does_not_wrap() -> None:
    text = dump_yaml({"z": 1, "a": "word " * 100, "m": {"y": [1, 2], "b": None}})
    assert text.splitlines()[0] == "z: 1"
    assert text.splitlines()[1].count("word") == 100


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"just text", b"", b"5"])
def test_a_recipe_file_holds_a_mapping(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match="not a mapping"):
        load_recipe(tmp_path / "recipe.yaml")


def test_an_unreadable_recipe_is_a_recipe_error(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(RecipeError, match=r"recipe not found: .*latim.yaml; did you mean .*latin"):
        load_recipe(tmp_path / "latim.yaml")
    with pytest.raises(RecipeError, match="expected a recipe file, found a directory"):
        load_recipe(tmp_path)
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({5: "x"}, "5 = 5: expected text as a name: put it in quotes, '5'"),
        ({("a",): 1}, "expected text as a name"),
        ({"algorithm": {5: "x", "name": "toy"}}, "algorithm.5 = 5: expected text as a name"),
    ],
)
def test_keys_that_are_no_strings_are_refused(
    toys: PluginManager, raw: dict[Any, Any], says: str
) -> None:
    assert says in refused({"algorithm": "toy", "model_pool": "toys", **raw}, toys)[0]


# --- sections -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [("5GB", 5 * 10**9), ("10MiB", 10 * 2**20), (1000, 1000), ("1.5 kB", 1500)],
)
def test_shard_sizes(value: object, expected: int) -> None:
    assert validate(OutputOptions, {"shard_size": value}).shard_size == expected


@pytest.mark.parametrize("value", ["5 bananas", -1, 0, HUGE, "many", [], None])
def test_bad_shard_sizes(value: object) -> None:
    with pytest.raises(RecipeError, match=r"^shard_size = "):
        validate(OutputOptions, {"shard_size": value})


@pytest.mark.parametrize(
    ("name", "recorded"),
    [
        *(("bf16", "bfloat16"), ("fp16", "float16"), ("half", "float16"), ("float", "float32")),
        *(("fp32", "float32"), ("double", "float64"), ("fp64", "float64"), ("float16", "float16")),
    ],
)
def test_dtypes_have_short_names_and_are_recorded_by_their_own(name: str, recorded: str) -> None:
    assert OutputOptions(dtype=name).model_dump(mode="json")["dtype"] == recorded


def test_a_choice_is_a_name_or_a_mapping() -> None:
    assert choice_of("ties") == Choice(name="ties")
    assert choice_of({"name": "ties", "density": 0.3}).options == {"density": 0.3}
    assert choice_of(None) == Choice()
    with pytest.raises(RecipeError):
        choice_of(5)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"models": ["x/same", "y/other", "z/same"]}, "the same name, same;"),
        ({"models": "x"}, "a mapping of names to models, or a list"),
        ({"models": 5}, "a mapping of names to models, or a list"),
        ({"models": [5]}, "expected a path, a recipe, a state dict or a live model"),
        ({"models": {"a": ""}}, "expected a path, got an empty text"),
        (
            {"models": {"a": "x"}, "base": 5},
            "expected a path, a recipe, a state dict or a live model",
        ),
        ({"models": {"a": "x"}, "bsae": "x"}, "did you mean base"),
        ({}, "models: required"),
    ],
)
def test_bad_checkpoints_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        validate(CheckpointsConfig, values)


class Everything(ComponentConfig):
    needed: int
    """What cannot
    be left out."""
    factors: list[float] | dict[str, float] | None = None


def test_options_are_described() -> None:
    needed, factors = describe_options(Everything)
    assert (needed.name, needed.type, needed.required, needed.default) == (
        "needed",
        "integer",
        True,
        None,
    )
    assert needed.description == "What cannot be left out."
    assert (factors.type, factors.required) == ("list of number | mapping", False)


def test_literals_are_described_by_their_values(toys: PluginManager) -> None:
    from fusion_core.contracts.specs import AlgorithmSpec

    options = {
        option.name: option
        for option in describe_options(toys.find(AlgorithmSpec, "toy").load_config())
    }
    assert options["mode"].type == "fast | slow"
    assert options["density"].default == 0.2
    assert options["density"].description == "What is kept, of everything."


def test_not_a_number_is_no_option() -> None:
    class Config(ComponentConfig):
        scale: float = 1.0

    for value in (float("nan"), float("inf")):
        with pytest.raises(RecipeError, match="finite"):
            validate(Config, {"scale": value})


class Kinds(StrEnum):
    ONE = "one"


class Inner(ComponentConfig):
    count: int = 1


class Strict(ComponentConfig):
    """Every kind of option that must not take text for a number, and those that convert."""

    number: float = 1.0
    bounded: Annotated[float, Field(ge=0, le=1)] | None = None
    count: int = 1
    flag: bool = False
    weights: ExpertWeights | None = None
    pair: tuple[int, float] = (1, 1.0)
    kind: Kinds = Kinds.ONE
    path: Path = Path()
    either: int | str = 0
    inner: Inner = Inner()
    several: dict[str, Inner] = Field(default={})


def test_options_from_python_are_refused_as_those_of_a_recipe_are() -> None:
    with pytest.raises(RecipeError) as caught:
        Strict(bounded=2, count="3", inner={"count": "x"}, cuont=1)
    assert caught.value.message.splitlines() == [
        "bounded = 2: expected a value less than or equal to 1",
        "count = '3': expected an integer, got text",
        "inner.count = 'x': expected an integer, got text",
        "cuont: unknown option; did you mean count?",
    ]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("number", "0.5"),
        ("number", True),
        ("bounded", "0.5"),
        ("bounded", False),
        ("count", "7"),
        ("count", True),
        ("count", b"7"),
        ("count", 7.5),
        ("flag", "yes"),
        ("flag", 1),
        ("weights", {"a": "1"}),
        ("weights", ["1"]),
        ("weights", [True]),
        ("pair", [1, "2"]),
        ("inner", {"count": "7"}),
        ("several", {"a": {"count": True}}),
    ],
)
def test_text_is_no_number_and_no_truth_value(option: str, value: object) -> None:
    with pytest.raises(RecipeError, match=rf"^section\.{option}.* = .*: expected ") as caught:
        validate(Strict, {option: value}, prefix="section")
    assert "before" not in caught.value.message  # pydantic's own words for a union's branches


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("number", 1, 1.0),
        ("bounded", 0, 0.0),
        ("count", 1e3, 1000),  # as YAML reads 1e3
        ("flag", True, True),
        ("weights", {"a": 1}, {"a": 1.0}),
        ("weights", [1, 0.5], [1.0, 0.5]),
        ("pair", [1, 2], (1, 2.0)),
        ("kind", "one", Kinds.ONE),
        ("path", "a/b", Path("a/b")),
        ("either", "7", "7"),
        ("inner", {"count": 3}, Inner(count=3)),
        ("several", {"a": {}}, {"a": Inner()}),
    ],
)
def test_everything_else_is_converted(option: str, value: object, expected: object) -> None:
    assert getattr(validate(Strict, {option: value}), option) == expected


def test_a_strict_option_looks_the_same_in_a_schema() -> None:
    properties = Strict.model_json_schema()["properties"]
    assert properties["number"]["type"] == "number"
    assert properties["bounded"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 1}
    assert properties["flag"]["type"] == "boolean"


def test_a_configuration_made_of_another_is_as_strict() -> None:
    class More(Strict):
        extra: int = 0

    class Checked(More):
        @model_validator(mode="after")
        def _check(self) -> Self:
            return self

    for option in ("number", "extra"):
        for config in (More, Checked):
            with pytest.raises(RecipeError, match=option):
                validate(config, {option: "1"})


# --- the JSON schema ----------------------------------------------------------------------------

GOOD_RECIPES: list[dict[str, Any]] = [
    {"algorithm": "toy", "output": {"dtype": "bf16"}},
    {"algorithm": "toy"},
    {"algorithm": "play", "model_pool": "toys", "task_pool": "games"},
    {"algorithm": "toy-plugin/toy"},
    {"algorithm": {"name": "toy", "density": 0.5, "mode": "slow"}, "seed": 3},
    {"algorithm": {"name": "toy-plugin/toy"}},
    {"algorithm": {"name": "toy", "only": "a.*", "skip": ["*.b", "c"]}},
    {"algorithm": {"name": "toy", "overrides": [{"match": "a.*", "density": 0.5}]}},
    {"algorithm": "toy", "model_pool": {"base": {"algorithm": "toy"}, "models": ["x.yaml"]}},
    {"algorithm": "toy", "model_pool": {"base": "b", "models": {"a": "x"}}},
    {"algorithm": "toy", "model_pool": {"base": "b", "models": ["x", "y"]}},
    {"algorithm": "toy", "model_pool": {"name": "checkpoints", "models": ["x"]}, "task_pool": None},
    {"algorithm": "toy", "model_pool": "toys", "task_pool": {"rounds": 3}},
    {"algorithm": "toy", "output": {"shard_size": "5GB", "dtype": None}},
    {"algorithm": "toy", "alignment": {"nan": "allow"}, "model_pool": None},
]
BAD_RECIPES: list[dict[str, Any]] = [
    {},
    {"algorithm": "nonsense"},
    {"algorithm": {"name": "toy", "desnity": 0.5}},
    {"algorithm": {"name": "toy", "density": 1.5}},
    {"algorithm": {"name": "toy", "mode": "medium"}},
    {"algorithm": {"density": 0.5}},
    {"algorithm": "toy", "model_pool": {"models": "x"}},
    {"algorithm": "toy", "model_pool": {"name": "toys", "models": ["x"]}},
    {"algorithm": "toy", "output": {"dtype": "int8"}},
    {"algorithm": "toy", "output": {"shard_size": -1}},
    {"algorithm": "toy", "alignment": {"nan": "maybe"}},
    {"algorithm": "toy", "seed": "x"},
    {"algorithm": {"name": "toy", "only": 3}},
    {"algorithm": {"name": "toy", "overrides": [{"density": 0.5}]}},
    {"algorithm": "toy", "model_pool": {"models": {"a": {"model_pool": "toys"}}}},
    {"algorithm": "toy", "seed": -3},
    {"algorithm": "toy", "tasks": []},
]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """Return a cache for the schema, which takes a second to make."""
    return {}


@pytest.fixture
def complain(site: Site, schema: dict[str, Any]) -> Callable[[object], list[str]]:
    site.install("toy-plugin", TOY, files={"toy_config.py": TOY_CONFIG})
    if not schema:
        schema |= recipe_schema(_manager())
        jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    return lambda recipe: [error.message for error in validator.iter_errors(recipe)]


@pytest.mark.parametrize("recipe", GOOD_RECIPES, ids=str)
def test_the_schema_takes_good_recipes(
    complain: Callable[[object], list[str]], recipe: dict[str, Any]
) -> None:
    assert complain(recipe) == []
    assert validate(Recipe, recipe)


@pytest.mark.parametrize("recipe", BAD_RECIPES, ids=str)
def test_the_schema_refuses_bad_recipes(
    complain: Callable[[object], list[str]], recipe: dict[str, Any]
) -> None:
    assert complain(recipe)
    with pytest.raises((RecipeError, PluginError)):
        resolve({"model_pool": "toys", **recipe}, _manager())


def test_a_recorded_recipe_fits_the_schema(
    complain: Callable[[object], list[str]],
) -> None:
    resolved = resolve({"algorithm": "play", "model_pool": "toys"}, _manager())
    (algorithm,) = resolved.stages
    assert algorithm is not None
    assert resolved.model_pool is not None
    recorded = resolved.recipe.model_dump(mode="json", include={"seed", "output", "alignment"})
    recorded |= {
        "algorithm": algorithm.as_recipe(),
        "model_pool": resolved.model_pool.as_recipe(),
    }
    assert complain(recorded) == []
    assert complain(load_yaml(dump_yaml(recorded), origin="")) == []


def test_a_broken_configuration_does_not_take_the_schema_down(site: Site) -> None:
    site.install("toy-plugin", TOY, files={"toy_config.py": TOY_CONFIG})
    site.install("hollow-x", TOY.replace("toy_config", "no_such").replace('"toy', '"hollow'))
    odd = {"odd_config.py": TOY_CONFIG.replace("steps: int", 'steps: "Nowhere"')}
    site.install(
        "odd-x", TOY.replace("toy_config", "odd_config").replace('"toy', '"odd'), files=odd
    )
    manager = _manager()
    validator = jsonschema.Draft202012Validator(recipe_schema(manager))
    assert validator.is_valid({"algorithm": {"name": "toy", "density": 0.1}})
    assert not validator.is_valid({"algorithm": {"name": "hollow"}})


def test_an_option_has_one_name() -> None:
    with pytest.raises(TypeError, match="the option 'scale' of Odd has an alias"):

        class Odd(ComponentConfig):
            scale: float = Field(0.3, alias="lambda")
