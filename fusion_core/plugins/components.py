"""What a plugin registered: a description, and the class that it stands for once that is needed."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import isabstract, isfunction
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fusion_core.contracts.specs import ComponentSpec, load_target
from fusion_core.errors import BrokenPluginError, FusionError
from fusion_core.machine.installed import cause_of

if TYPE_CHECKING:
    from collections.abc import Callable

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
        """Everything that this component answers to."""
        return (self.spec.name, *self.spec.aliases, self.qualified_name)

    def create(self, *arguments: object) -> Any:  # noqa: ANN401 - what it is, the caller knows
        """Import the component's class and make one of it, of its configuration as a rule.

        Raises `BrokenPluginError` if the class is not what it is registered as, or if its
        constructor fails with anything but a `FusionError`.
        """
        make = self._load_maker()
        try:
            made = make(*arguments)
        except (FusionError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            raise self.broken(f"cannot be made: {cause_of(error)}") from error
        expected = load_target(self.spec.base)
        if not isinstance(made, expected):
            raise self.broken(f"cannot be used: it made {made!r}, not an {expected.__name__}")
        return made

    def load_class(self) -> type[Any]:
        """Import the component's class; this is where heavy imports happen."""
        return self._load_class(self.spec.target, self.spec.base)

    def load_config(self) -> type[Any]:
        """Import the component's configuration class."""
        return self._load_class(self.spec.config, self.spec.config_base)

    def _load_maker(self) -> Callable[..., Any]:
        if self.spec.takes_functions and isfunction(found := self.load(self.spec.target)):
            return found
        return self.load_class()

    def load(self, target: str) -> Any:  # noqa: ANN401 - whatever the plugin put there
        """Import what a target of the spec names; `BrokenPluginError` if that fails."""
        try:
            return load_target(target)
        except (Exception, SystemExit) as error:
            raise self.broken(f"cannot be imported from {target!r}: {cause_of(error)}") from error

    def _load_class(self, target: str, base: str) -> type[Any]:
        loaded, expected = self.load(target), load_target(base)
        if not isinstance(loaded, type) or not issubclass(loaded, expected):
            raise self.broken(
                f"cannot be used: {target!r} is {loaded!r}, not a class of {expected.__name__}"
            )
        if isabstract(loaded):
            abstract: frozenset[str] = vars(loaded)["__abstractmethods__"]
            missing = ", ".join(sorted(abstract))
            raise self.broken(f"cannot be used: {target!r} does not define {missing}")
        return loaded

    def broken(self, problem: str) -> BrokenPluginError:
        """Return the error for a component that does not keep its contract."""
        spec, plugin = self.spec, self.plugin
        who = f"{spec.kind} {spec.name!r} of plugin {plugin.distribution} {plugin.version}"
        return BrokenPluginError(
            f"{who} {problem}",
            hint="Reinstall the plugin, or report this to its authors.",
        )
