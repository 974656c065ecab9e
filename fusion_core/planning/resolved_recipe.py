"""A validated recipe: its components with their options."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from fusion_core.contracts.specs import (
    AlgorithmSpec,
    ComponentSpec,
    ExecutorSpec,
    ModelPoolSpec,
    OutputSpec,
    TaskPoolSpec,
)
from fusion_core.recipe.numeric_forms import hint_at_forms
from fusion_core.recipe.patterns import Selection
from fusion_core.recipe.validation import validate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core.plugins.components import Component
    from fusion_core.plugins.manager import PluginManager
    from fusion_core.recipe.config import ComponentConfig, Recipe

SpecT = TypeVar("SpecT", bound=ComponentSpec)


@dataclass(frozen=True, slots=True)
class Resolved(Generic[SpecT]):
    """A component with its validated options."""

    component: Component[SpecT]
    config: ComponentConfig
    #: the plugins that are active while the component is created
    plugins: PluginManager = field(repr=False, compare=False)
    #: the tensors that an algorithm merges
    selection: Selection = field(default_factory=Selection)
    #: the options as given, on top of which overrides for some tensors are set
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The component's name, even if the recipe used an alias."""
        return self.component.spec.name

    def as_recipe(self, folder: Path | None = None) -> dict[str, Any]:
        """Return the section with all defaults written out, for a recipe in `folder`."""
        name = self.plugins.shortest_name(self.component)
        selection = self.selection.model_dump(mode="json", exclude_defaults=True)
        options = self.config.model_dump(mode="json", context=folder)
        return {"name": name, **options, **selection}

    def create(self) -> Any:  # noqa: ANN401 - an algorithm or a pool; the caller knows
        """Import the class and instantiate it."""
        with self.plugins.active():
            return self.component.create(self.config)

    def needs_trust(self) -> Mapping[str, str]:
        """Return the actions that the options need trust for, by the name of the trust.

        Raises `BrokenPluginError` for a name that the component's spec does not list.
        """
        needs = self.config.needs_trust()
        unlisted = needs.keys() - set(self.component.spec.trust)
        if unlisted:
            names = ", ".join(sorted(unlisted))
            raise self.component.broken(f"asks for trust that its spec does not list: {names}")
        return needs

    def changed(self, options: Mapping[str, Any], *, prefix: str = "algorithm") -> Self:
        """Return a copy with some options changed; raises `RecipeError` for invalid options."""
        hint = hint_at_options(self.component, options)
        values = {**self.given, **options}
        config = validate(self.component.load_config(), values, prefix=prefix, hint=hint)
        return replace(self, config=config)


def hint_at_options(component: Component[Any], options: Mapping[str, Any]) -> str:
    """Return the hint of an error about a component's options."""
    by_depth = isinstance(component.spec, AlgorithmSpec) and component.spec.takes_overrides
    hints = hint_at_forms(component.load_config(), options, by_depth=by_depth)
    return "\n".join([*hints, f"See: fuse info {component.spec.name}"])


@dataclass(frozen=True, slots=True)
class ResolvedRecipe:
    """A validated recipe; a section is None if it was left out or given as an object."""

    recipe: Recipe
    stages: tuple[Resolved[AlgorithmSpec] | None, ...]
    model_pool: Resolved[ModelPoolSpec] | None
    task_pool: Resolved[TaskPoolSpec] | None
    executor: Resolved[ExecutorSpec]
    #: the form of the output; None for a full model
    form: Resolved[OutputSpec] | None = None
