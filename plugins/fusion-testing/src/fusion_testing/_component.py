"""What every component must keep, whatever it is: packaging, lightness, options.

The base of the suites. A suite needs one fixture, `spec`; `options` is for components that
cannot be made from their defaults.
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

_LONGEST_SUMMARY = 90


class SpecSuite(Suite):
    """Checks of whatever a hook registers: packaging and lightness."""

    @pytest.fixture
    def spec(self) -> ComponentSpec:
        """Return what the plugin's hook registers: the one fixture that an author must supply."""
        return fail(
            f"{type(self).__name__} has no fixture `spec`.",
            "Add one to the class that returns the spec which your hook registers.",
        )

    @pytest.fixture
    def component(self, spec: ComponentSpec) -> Component[Any]:
        """Return the component as the installed plugin provides it."""
        return find_component(spec) or Component(spec, Plugin("(not installed)", "", spec.target))

    # --- packaging ------------------------------------------------------------------------------

    def test_the_plugin_is_installed(self, spec: ComponentSpec) -> None:
        """The distribution is in the entry-point group, and registers this very spec."""
        require_component(spec)

    def test_the_plugin_says_which_core_it_needs(self, spec: ComponentSpec) -> None:
        """It requires fusion-core within bounds, so a later core refuses it instead of failing."""
        distribution = require_component(spec).plugin.distribution
        if distribution == CORE:
            pytest.skip("the core needs no core")
        if not needs_core_within_bounds(distribution):
            fail(
                f"{distribution} does not require fusion-core with a lower and an upper bound.",
                'Write it into pyproject.toml: dependencies = ["fusion-core>=0.1,<0.2"].',
            )

    def test_the_package_is_typed(self, spec: ComponentSpec) -> None:
        """Type checkers of its users read its annotations."""
        package = spec.target.partition(".")[0].partition(":")[0]
        found = find_spec(package)
        places = (found and found.submodule_search_locations) or ()
        if not any((Path(place) / "py.typed").is_file() for place in places):
            fail(f"the package {package!r} has no py.typed.", "Add an empty file of that name.")

    def test_the_summary_is_one_line(self, spec: ComponentSpec) -> None:
        """Listings show it in a table."""
        if not spec.summary.strip() or "\n" in spec.summary or len(spec.summary) > _LONGEST_SUMMARY:
            fail(
                f"the summary of {spec.name!r} is {spec.summary!r}.",
                f"Say what it does in one line of at most {_LONGEST_SUMMARY} characters.",
            )

    # --- lightness ------------------------------------------------------------------------------

    def test_listing_it_imports_nothing_heavy(self, spec: ComponentSpec) -> None:
        """The module with the hooks imports no library that a listing does not need."""
        module = require_component(spec).plugin.module.partition(":")[0]
        fail_if_heavy(
            module,
            "every `fuse --help` and every completion",
            "Import it in the module of the component's class, which specs name as a string; "
            "look into the package's __init__.py, too.",
            heavy=HEAVY | FOR_OPTIONS,
        )


class ComponentSuite(SpecSuite):
    """Checks of any component; authors use the suite of their component's kind."""

    #: the class that the component must derive from
    kind: ClassVar[type[Any]] = object

    @pytest.fixture
    def options(self) -> Mapping[str, Any]:
        """Return the options to test the component with; override it if some are required."""
        return {}

    @pytest.fixture
    def config(self, component: Component[Any], options: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """Return the validated options; fails if some are required and `options` lacks them."""
        try:
            return validate(component.load_config(), dict(options), prefix="options")
        except RecipeError as error:
            fail(
                f"{component.spec.name!r} cannot be configured: {error}",
                "Add a fixture `options` to this class that returns valid options.",
            )

    def test_its_options_import_nothing_heavy(self, spec: ComponentSpec) -> None:
        """The module of the configuration serves `fuse info`, which must not wait for torch."""
        module = spec.config.partition(":")[0]
        fail_if_heavy(
            module,
            f"`fuse info {spec.name}`",
            "Keep the configuration class in a module of its own that imports nothing heavy.",
        )

    def test_the_class_is_what_its_spec_says(self, component: Component[Any]) -> None:
        """The target is a concrete class of the right kind, and takes this configuration."""
        spec, expected = component.spec, component.load_config()
        if not issubclass(expected, ComponentConfig):
            fail(f"{spec.config} is not a ComponentConfig.", "Derive the class from it.")
        if spec.takes_functions:  # what it makes is looked at when it is made
            return
        found = component.load_class()
        if not issubclass(found, self.kind):
            fail(
                f"{spec.target} is not of the kind {self.kind.__name__}.",
                "Derive the class from it.",
            )
        if unwritten := sorted(getattr(found, "__abstractmethods__", ())):
            fail(f"{spec.target} lacks {', '.join(unwritten)}.", "Write what is missing.")
        if found.config_class is not expected:
            fail(
                f"{spec.target} has config_class {found.config_class.__name__}, its spec names "
                f"{spec.config}.",
                "Name the same class in both places.",
            )

    def test_an_unknown_option_is_refused(
        self, component: Component[Any], options: Mapping[str, Any]
    ) -> None:
        """A misspelled option is an error that names it, never a run with another meaning."""
        strange = {**options, "an_option_of_nobody": 1}
        try:
            validate(component.load_config(), strange)
        except RecipeError as error:
            if "an_option_of_nobody" in error.message:
                return
        fail(
            f"{component.spec.config} accepts an option that it does not have.",
            'Derive it from ComponentConfig and leave model_config\'s `extra="forbid"` as it is.',
        )

    def test_every_option_is_described(self, component: Component[Any]) -> None:
        """`fuse info` and the JSON schema show each option's docstring."""
        for name, field in component.load_config().model_fields.items():
            if not (field.description or "").strip():
                fail(
                    f"the option {name!r} of {component.spec.name!r} has no description.",
                    'Put a docstring below the field: """What it does.""".',
                )

    def test_options_cannot_be_changed(self, config: ComponentConfig) -> None:
        """A recipe says what a run does, so nothing changes its options on the way."""
        if not type(config).model_config.get("frozen"):
            fail(
                f"{type(config).__name__} is not frozen.",
                "Leave model_config's `frozen=True` as ComponentConfig sets it.",
            )

    def test_options_survive_a_recipe(self, config: ComponentConfig) -> None:
        """Written as YAML and read again, options, defaults included, are the same."""
        text = dump_yaml(config.model_dump(mode="json"))
        again = validate(type(config), load_yaml(text, origin="the recipe"))
        if again != config:
            fail(
                f"the options {config!r} come out of a recipe as {again!r}.",
                "Use types that JSON can hold, or give the field a serialiser.",
            )

    def test_options_have_a_schema(self, component: Component[Any]) -> None:
        """Editors complete recipes by it."""
        component.load_config().model_json_schema()
