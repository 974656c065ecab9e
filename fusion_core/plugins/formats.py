"""Choice of the format that reads a model, by file names and configuration keys alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain, compress
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.specs import FormatSpec
from fusion_core.errors import CheckpointError
from fusion_core.plugins.manager import active_plugins
from fusion_core.weights.reading.assets import CONFIG, read_config
from fusion_core.weights.reading.location import Location, locate
from fusion_core.weights.reading.quantisation import find_config_value
from fusion_core.weights.source import walk

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fusion_core.plugins.components import Component
    from fusion_core.plugins.manager import PluginManager
    from fusion_core.weights import WeightSource

#: Also for models that no format claims: its reader lists the files and suggests a remedy.
_DEFAULT = "fusion-core/safetensors"
_CORE_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """The location of a model, and the format that reads it."""

    location: Location
    format: Component[FormatSpec]

    @property
    def is_delta(self) -> bool:
        """Whether the files hold differences from a base, as an adapter's do."""
        return self.format.spec.is_delta

    @property
    def base_name(self) -> str | None:
        """The name that the files give to the base of their differences; None if they give none."""
        if self.format.spec.base_key is None:
            return None
        file, key = self.format.spec.base_key
        if not self.location.matching(file):
            return None
        name = read_config(self.location.file(file)).get(key)
        return name if isinstance(name, str) else None

    def open(self, base: WeightSource | None = None) -> WeightSource:
        """Read the headers and return the weights. Differences are those from `base`.

        Raises `CheckpointError` for differences without a base, and any error of the format.
        """
        if self.is_delta and base is None:
            raise CheckpointError(
                f"expected a full model, found an adapter without its base: {self.location.name}",
                hint="Name the full model that the adapter was trained on.",
            )
        arguments = (self.location, base) if self.is_delta else (self.location,)
        source: WeightSource = self.format.create(*arguments)
        return source


def find_model(given: str, option: str, *more: str, preferred: str | None = None) -> LocatedModel:
    """Find a model by its path or its name on the hub, and the format that reads it.

    `option` names it in errors. `more` lists patterns of further files that are needed from a
    repository. `preferred` is the format to use if several could read the model.

    Raises `CheckpointError` for a missing model and for one that several formats claim,
    `UnknownComponentError` for a `preferred` that is not installed, and the errors of
    `hub.download`.
    """
    plugins = active_plugins()
    chosen = None if preferred is None else plugins.find(FormatSpec, preferred)
    patterns = {
        pattern for component in plugins.components(FormatSpec) for pattern in component.spec.files
    }
    location = locate(given, option, *more, formats=patterns)
    return LocatedModel(location, _format_of(location, plugins, chosen))


def distributions_of_formats(sources: Iterable[WeightSource], plugins: PluginManager) -> set[str]:
    """Return the plugins, except the core, whose classes read these weights."""
    parts = chain.from_iterable(map(walk, sources))
    packages = {type(part).__module__.partition(".")[0] for part in parts} - {_CORE_PACKAGE}
    return {
        component.plugin.distribution
        for component in plugins.components(FormatSpec)
        if re.split(r"[.:]", component.spec.target)[0] in packages
    }


def _format_of(
    location: Location, plugins: PluginManager, chosen: Component[FormatSpec] | None
) -> Component[FormatSpec]:
    """Return the format of a model.

    Formats with configuration keys take precedence over others, and full models over adapters.
    """
    components = list(plugins.components(FormatSpec))
    claimed = claims([component.spec for component in components], location)
    claiming = list(compress(components, claimed))
    if chosen is not None and chosen in claiming:
        return chosen
    claiming = [component for component in claiming if component.spec.config_keys] or claiming
    claiming = [component for component in claiming if not component.spec.is_delta] or claiming
    if len(claiming) > 1:
        names = " and ".join(component.qualified_name for component in claiming)
        raise CheckpointError(
            f"several formats can read {location.name}: {names}",
            hint="Choose one by the pool's option `format`, name the file itself, or block a "
            "plugin with --no-plugin.",
        )
    return claiming[0] if claiming else plugins.find(FormatSpec, _DEFAULT)


def claims(specs: Sequence[FormatSpec], location: Location) -> list[bool]:
    """Tell which formats claim a model, by its file names and its configuration's keys."""
    has_files = [any(map(location.matching, spec.files)) for spec in specs]
    path = location.directory / CONFIG
    has_keys = any(spec.config_keys for spec in compress(specs, has_files))
    config = read_config(path) if has_keys and path.is_file() else {}
    return [fits and _has_keys(spec, config) for spec, fits in zip(specs, has_files, strict=True)]


def _has_keys(spec: FormatSpec, config: Mapping[str, Any]) -> bool:
    if not spec.config_keys:
        return True
    value = find_config_value(config, frozenset(spec.config_keys))
    if not spec.config_values:
        return value is not None
    return isinstance(value, dict) and all(value.get(k) == v for k, v in spec.config_values)
