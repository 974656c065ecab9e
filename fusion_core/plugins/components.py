"""Registered components: a spec, and the class that it names, imported on demand."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import isabstract, isfunction
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fusion_core.contracts.specs import ComponentSpec, load_target
from fusion_core.errors import BrokenPluginError, FusionError
from fusion_core.machine.distributions import summarize_error

if TYPE_CHECKING:
    from fusion_core.plugins.distributions import Plugin

SpecT = TypeVar("SpecT", bound=ComponentSpec)


@dataclass(frozen=True, slots=True)
class Component(Generic[SpecT]):
    """A spec with the plugin that registered it."""

    spec: SpecT
    plugin: Plugin

    @property
    def qualified_name(self) -> str:
        """The name that is never ambiguous: `distribution/name`."""
        return f"{self.plugin.distribution}/{self.spec.name}"

    @property
    def names(self) -> tuple[str, ...]:
        """All names of this component: its name, its aliases and its qualified name."""
        return (self.spec.name, *self.spec.aliases, self.qualified_name)

    def create(self, *arguments: object) -> Any:  # noqa: ANN401 - the caller knows the class
        """Import the component's class or function and call it, usually with its configuration.

        Raises `BrokenPluginError` for an object of the wrong class, and for a constructor that
        fails with anything but a `FusionError`.
        """
        target = self.load(self.spec.target) if self.spec.takes_functions else None
        make = target if isfunction(target) else self.load_class()
        try:
            created = make(*arguments)
        except (FusionError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            raise self.broken(f"cannot be made: {summarize_error(error)}") from error
        expected = load_target(self.spec.base)
        if not isinstance(created, expected):
            raise self.broken(f"cannot be used: expected {expected.__name__}, got {created!r}")
        return created

    def load_class(self) -> type[Any]:
        """Import the component's class. This is where heavy imports happen."""
        return self._load_class(self.spec.target, self.spec.base)

    def load_config(self) -> type[Any]:
        """Import the component's configuration class."""
        return self._load_class(self.spec.config, self.spec.config_base)

    def load(self, target: str) -> Any:  # noqa: ANN401 - whatever the plugin has there
        """Import a target of the spec. Raises `BrokenPluginError` if that fails."""
        try:
            return load_target(target)
        except (Exception, SystemExit) as error:
            raise self.broken(
                f"cannot be imported from {target!r}: {summarize_error(error)}"
            ) from error

    def _load_class(self, target: str, base: str) -> type[Any]:
        loaded, expected = self.load(target), load_target(base)
        if not isinstance(loaded, type) or not issubclass(loaded, expected):
            raise self.broken(
                f"cannot be used: expected a subclass of {expected.__name__} at {target!r}, "
                f"got {loaded!r}"
            )
        if isabstract(loaded):
            abstract: frozenset[str] = vars(loaded)["__abstractmethods__"]
            missing = ", ".join(sorted(abstract))
            raise self.broken(f"cannot be used: {target!r} does not define {missing}")
        return loaded

    def broken(self, problem: str) -> BrokenPluginError:
        """Return the error for a component that breaks its contract."""
        spec, plugin = self.spec, self.plugin
        name = f"{spec.kind} {spec.name!r} of plugin {plugin.distribution} {plugin.version}"
        return BrokenPluginError(
            f"{name} {problem}", hint="Reinstall the plugin, or report this to its authors."
        )
