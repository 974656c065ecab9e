"""Checks of every component, whatever its kind: packaging, lightness and options.

All suites derive from the classes here. A suite needs one fixture, `spec`. Components with required
options need `options` too.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from fusion_core.errors import RecipeError
from fusion_core.machine.distributions import CORE
from fusion_core.plugins.components import Component
from fusion_core.plugins.distributions import Plugin
from fusion_core.recipe.config import ComponentConfig
from fusion_core.recipe.text import dump_yaml, load_yaml
from fusion_core.recipe.validation import validate
from fusion_testing._packages import (
    FOR_OPTIONS,
    HEAVY,
    fail_if_heavy,
    find_component,
    needs_core_within_bounds,
    require_component,
)
from fusion_testing._suite import Suite, fail

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.contracts.specs import ComponentSpec

_MAX_SUMMARY = 90


class SpecSuite(Suite):
    """Checks of everything that a hook can register: packaging and lightness."""

    @pytest.fixture
    def spec(self) -> ComponentSpec:
        """Return the spec that the plugin's hook registers. Authors must supply this fixture."""
        return fail(
            f"{type(self).__name__} has no fixture `spec`.",
            "Add a fixture `spec` to the class. Return the spec that your hook registers.",
        )

    @pytest.fixture
    def component(self, spec: ComponentSpec) -> Component[Any]:
        """Return the component of the installed plugin."""
        return find_component(spec) or Component(spec, Plugin("(not installed)", "", spec.target))

    # --- packaging ------------------------------------------------------------------------------

    def test_the_plugin_is_installed(self, spec: ComponentSpec) -> None:
        """The distribution has an entry point, and its module registers exactly this spec."""
        require_component(spec)

    def test_the_plugin_says_which_core_it_needs(self, spec: ComponentSpec) -> None:
        """The distribution requires fusion-core within bounds: a later core refuses to load it."""
        distribution = require_component(spec).plugin.distribution
        if distribution == CORE:
            pytest.skip("the component belongs to the core itself")
        if not needs_core_within_bounds(distribution):
            fail(
                f"{distribution} does not require fusion-core with a lower and an upper bound.",
                'Add both to pyproject.toml: dependencies = ["fusion-core>=0.1,<0.2"].',
            )

    def test_the_package_is_typed(self, spec: ComponentSpec) -> None:
        """The package has a `py.typed`, so type checkers read its annotations."""
        package = spec.target.partition(".")[0].partition(":")[0]
        module_spec = find_spec(package)
        folders = (module_spec and module_spec.submodule_search_locations) or ()
        if not any((Path(folder) / "py.typed").is_file() for folder in folders):
            fail(
                f"the package {package!r} has no py.typed.",
                f"Add an empty file src/{package}/py.typed.",
            )

    def test_the_summary_is_one_line(self, spec: ComponentSpec) -> None:
        """The summary fits into the table of a listing."""
        if not spec.summary.strip() or "\n" in spec.summary or len(spec.summary) > _MAX_SUMMARY:
            fail(
                f"the summary of {spec.name!r} does not fit into one line: {spec.summary!r}.",
                f"Describe the component in one line of at most {_MAX_SUMMARY} characters.",
            )

    # --- lightness ------------------------------------------------------------------------------

    def test_listing_it_imports_nothing_heavy(self, spec: ComponentSpec) -> None:
        """The module with the hooks imports no heavy library."""
        module = require_component(spec).plugin.module.partition(":")[0]
        fail_if_heavy(
            module,
            "every `fuse --help` and every completion",
            "Import it in the module of the component's class instead; the spec names that module "
            "as a string. Check the package's __init__.py too.",
            heavy=HEAVY | FOR_OPTIONS,
        )


class ComponentSuite(SpecSuite):
    """Checks of every component with options. Authors use the suite of their component's kind."""

    #: the class that the component must derive from
    kind: ClassVar[type[Any]] = object

    @pytest.fixture
    def options(self) -> Mapping[str, Any]:
        """Return the options for the checks; override this if some options are required."""
        return {}

    @pytest.fixture
    def config(self, component: Component[Any], options: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """Return the validated options; fail if `options` lacks required ones."""
        try:
            return validate(component.load_config(), dict(options), prefix="options")
        except RecipeError as error:
            fail(
                f"the options of {component.spec.name!r} are invalid: {error}",
                "Add a fixture `options` to this class that returns valid options.",
            )

    def test_its_options_import_nothing_heavy(self, spec: ComponentSpec) -> None:
        """The module of the configuration imports no heavy library, so `fuse info` stays fast."""
        module = spec.config.partition(":")[0]
        fail_if_heavy(
            module,
            f"`fuse info {spec.name}`",
            "Move the configuration class to a separate module without heavy imports.",
        )

    def test_the_class_is_what_its_spec_says(self, component: Component[Any]) -> None:
        """The target is a concrete class of the right kind and has this configuration."""
        spec, expected = component.spec, component.load_config()
        if not issubclass(expected, ComponentConfig):
            fail(f"{spec.config} is not a ComponentConfig.", "Derive it from ComponentConfig.")
        if spec.takes_functions:  # a function's result is checked when a run calls it
            return
        target = component.load_class()
        if not issubclass(target, self.kind):
            fail(
                f"{spec.target} is not a subclass of {self.kind.__name__}.",
                f"Derive it from {self.kind.__name__}.",
            )
        if missing := sorted(getattr(target, "__abstractmethods__", ())):
            fail(f"{spec.target} lacks {', '.join(missing)}.", "Implement the missing methods.")
        if target.config_class is not expected:
            fail(
                f"{spec.target} has config_class {target.config_class.__name__}, but its spec "
                f"names {spec.config}.",
                "Name the same class in the spec and in `config_class`.",
            )

    def test_an_unknown_option_is_refused(
        self, component: Component[Any], options: Mapping[str, Any]
    ) -> None:
        """A misspelled option is an error that names the option."""
        try:
            validate(component.load_config(), {**options, "no_such_option": 1})
        except RecipeError as error:
            if "no_such_option" in error.message:
                return
        fail(
            f"{component.spec.config} accepts an unknown option.",
            'Derive it from ComponentConfig, and keep `extra="forbid"` in model_config.',
        )

    def test_every_option_is_described(self, component: Component[Any]) -> None:
        """Every option has a docstring: `fuse info` and the JSON schema show it."""
        for name, field in component.load_config().model_fields.items():
            if not (field.description or "").strip():
                fail(
                    f"the option {name!r} of {component.spec.name!r} has no description.",
                    'Put a docstring below the field: """Factor of the mean task vector.""".',
                )

    def test_options_cannot_be_changed(self, config: ComponentConfig) -> None:
        """Options are frozen, so a run does what its recipe says."""
        if not type(config).model_config.get("frozen"):
            fail(
                f"{type(config).__name__} is not frozen.",
                "Keep `frozen=True` in model_config, as ComponentConfig sets it.",
            )

    def test_options_survive_a_recipe(self, config: ComponentConfig) -> None:
        """Options are the same after they are written to YAML and read again."""
        text = dump_yaml(config.model_dump(mode="json"))
        again = validate(type(config), load_yaml(text, origin="the recipe"))
        if again != config:
            fail(
                f"a recipe changes the options: expected {config!r}, got {again!r}.",
                "Use types that JSON can store, or add a serialiser to the field.",
            )

    def test_options_have_a_schema(self, component: Component[Any]) -> None:
        """The configuration has a JSON schema, which editors use to complete recipes."""
        component.load_config().model_json_schema()
