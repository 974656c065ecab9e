"""What a plugin registered: a description, and the class that it stands for once that is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fusion_core.distributions import cause_of
from fusion_core.errors import BrokenPluginError
from fusion_core.specs import ComponentSpec, load_target

if TYPE_CHECKING:
    from fusion_core.distributions import Plugin

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

    def load_class(self) -> type[Any]:
        """Import the component's class; this is where heavy imports happen."""
        return self._load(self.spec.target)

    def load_config(self) -> type[Any]:
        """Import the component's configuration class."""
        return self._load(self.spec.config)

    def _load(self, target: str) -> type[Any]:
        try:
            loaded = load_target(target)
        except Exception as error:
            raise BrokenPluginError(
                f"{self.spec.kind} {self.spec.name!r} of plugin {self.plugin.distribution} "
                f"{self.plugin.version} cannot be imported from {target!r}: {cause_of(error)}",
                hint="Reinstall the plugin, or report this to its authors.",
            ) from error
        if not isinstance(loaded, type):
            raise BrokenPluginError(
                f"plugin {self.plugin.distribution}: {target!r} is {loaded!r}, not a class"
            )
        return loaded
