"""Discovery of plugins, isolation of their failures, and lookup of components by name.

The loader is not pluggy's, because pluggy lets one plugin's import error crash the host, and
silently drops a second distribution that reuses an entry-point name. Here a plugin is its
distribution: the unit that users install, block and uninstall. This module imports no classes of
plugins.
"""

from __future__ import annotations

import logging
import sys
import time
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pluggy

from fusion_core import hookspecs
from fusion_core.contracts.specs import (
    AlgorithmSpec,
    CommandSpec,
    ComponentSpec,
    ExecutorSpec,
    FormatSpec,
    KernelSpec,
    ModelPoolSpec,
    OutputSpec,
    PipelineSpec,
    TaskPoolSpec,
)
from fusion_core.errors import (
    AmbiguousComponentError,
    BrokenPluginError,
    FusionError,
    PluginError,
    UnknownComponentError,
)
from fusion_core.formatting import suggest
from fusion_core.machine.distributions import CORE, GROUP, find_plugins, summarize_error
from fusion_core.plugins.components import Component, SpecT
from fusion_core.plugins.distributions import (
    BLOCK_VARIABLE,
    Plugin,
    PluginStatus,
    blocked_plugins,
    unmet_requirement,
)
from fusion_core.plugins.ownership import distribution_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from importlib import metadata
    from pathlib import Path

    from fusion_core.contracts.imported import ImportedRecipe
    from fusion_core.contracts.run import RunInfo

#: Slower imports are reported: every listing and every completion waits for them.
SLOW_SECONDS = 0.5

#: The kinds of components, by the hook that registers them.
REGISTER_HOOKS: dict[str, type[ComponentSpec]] = {
    "fusion_register_algorithms": AlgorithmSpec,
    "fusion_register_pipelines": PipelineSpec,
    "fusion_register_model_pools": ModelPoolSpec,
    "fusion_register_task_pools": TaskPoolSpec,
    "fusion_register_executors": ExecutorSpec,
    "fusion_register_formats": FormatSpec,
    "fusion_register_outputs": OutputSpec,
    "fusion_register_kernels": KernelSpec,
    "fusion_register_commands": CommandSpec,
}
#: The commands that list the components of a kind.
_LISTINGS: dict[type[ComponentSpec], str] = {
    AlgorithmSpec: "fuse list algorithms",
    ModelPoolSpec: "fuse list pools",
    TaskPoolSpec: "fuse list tasks",
    ExecutorSpec: "fuse list executors",
    FormatSpec: "fuse list formats",
    OutputSpec: "fuse list outputs",
    KernelSpec: "fuse list kernels",
    CommandSpec: "fuse list commands",
}

#: More names than these are not listed in an error.
_MAX_LISTED = 10

logger = logging.getLogger(__name__)


class PluginManager(pluggy.PluginManager):
    """The plugins of this environment, ordered by the names of their distributions."""

    def __init__(self) -> None:
        super().__init__(hookspecs.PROJECT)
        self.add_hookspecs(hookspecs)
        self.plugins: list[Plugin] = []

    def discover(self, *, block: Iterable[str] = ()) -> None:
        """Load every plugin of the environment that is not in `block` ("*": all but the core).

        Raises `PluginError` for a name in `block` that no installed plugin has.
        """
        entries = find_plugins()
        declared = [Plugin.declared(*entry) for entry in entries]
        blocked = blocked_plugins({plugin.distribution for plugin in declared}, block)
        for plugin, (entry_point, distribution) in zip(declared, entries, strict=True):
            discovered = {earlier.distribution for earlier in self.plugins}
            self.plugins.append(plugin)
            if plugin.distribution != CORE and blocked & {plugin.distribution, "*"}:
                plugin.status = PluginStatus.BLOCKED
                plugin.detail = f"blocked by --no-plugin or {BLOCK_VARIABLE}"
            elif plugin.distribution in discovered:
                plugin.status = PluginStatus.BROKEN
                plugin.detail = f"expected one entry point in {GROUP}, found a second"
            elif problem := unmet_requirement(distribution):
                plugin.status, plugin.detail = problem
            else:
                self._load(plugin, entry_point)

    def _load(self, plugin: Plugin, entry_point: metadata.EntryPoint) -> None:
        started = time.perf_counter()
        module: object = None
        try:
            with redirect_stdout(sys.stderr):  # stdout is for results
                module = entry_point.load()
                self.register(module, name=plugin.distribution)
                self.check_pending()
                self._check_marks(module)
                plugin.components = list(self._registered_by(plugin.distribution))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit at import included
            plugin.status = PluginStatus.BROKEN
            plugin.detail = summarize_error(error)
            plugin.error = error
            if module is not None and self.is_registered(module):
                self.unregister(module)
        plugin.seconds = time.perf_counter() - started

    def _check_marks(self, module: object) -> None:
        """Raise `TypeError` for a function with the name of a hook that lacks its mark."""
        marked = {caller.name for caller in self.get_hookcallers(module) or ()}
        for name in vars(module).keys() & vars(hookspecs).keys() - marked:
            if name.startswith("fusion_"):
                raise TypeError(f"{name} lacks the decorator @hookimpl")

    def _registered_by(self, distribution: str) -> Iterator[ComponentSpec]:
        seen: set[tuple[type, str]] = set()
        for hook, kind in REGISTER_HOOKS.items():
            for implementation in getattr(self.hook, hook).get_hookimpls():
                if implementation.plugin_name != distribution:
                    continue
                for spec in implementation.function():
                    if not isinstance(spec, kind):
                        raise TypeError(f"{hook} returned {spec!r}, expected {kind.__name__}")
                    if (kind, spec.name) in seen:
                        raise ValueError(f"{hook} returned {spec.name!r} twice")
                    seen.add((kind, spec.name))
                    yield spec

    def components(self, kind: type[SpecT] | tuple[type[SpecT], ...]) -> Iterator[Component[SpecT]]:
        """Yield every component of one kind, or of several kinds."""
        for plugin in self.plugins:
            for spec in plugin.components:
                if isinstance(spec, kind):
                    yield Component(spec, plugin)

    def find(self, kind: type[SpecT], name: str) -> Component[SpecT]:
        """Look a component up by its name, an alias, or `distribution/name`.

        Raises `UnknownComponentError` with the closest names, and `AmbiguousComponentError` if
        several plugins provide the component.
        """
        return self._find(kind, (kind,), name)

    def shortest_name(self, component: Component[Any]) -> str:
        """Return a component's name, or its full name if several plugins provide such a one."""
        name, known = component.spec.name, self.components(type(component.spec))
        is_unique = sum(name in other.names for other in known) == 1
        return name if is_unique else component.qualified_name

    def find_stages(self, name: str) -> Component[Any]:
        """Look up an algorithm or a pipeline, which share their names. Raises like `find`."""
        return self._find(AlgorithmSpec, (AlgorithmSpec, PipelineSpec), name)

    def _find(
        self, kind: type[ComponentSpec], searched: tuple[type[Any], ...], name: str
    ) -> Component[Any]:
        matches = [component for component in self.components(searched) if name in component.names]
        if not matches:
            raise self._unknown(kind, name)
        if len(matches) > 1:
            raise AmbiguousComponentError(
                f"several plugins provide {kind.kind} {name!r}: "
                + ", ".join(component.qualified_name for component in matches),
                hint="Use one of these full names, or block a plugin with --no-plugin.",
            )
        return matches[0]

    def _unknown(self, kind: type[ComponentSpec], name: str) -> UnknownComponentError:
        kinds: tuple[type[Any], ...] = (
            (AlgorithmSpec, PipelineSpec) if kind is AlgorithmSpec else (kind,)
        )
        known = {known for component in self.components(kinds) for known in component.names}
        guess = suggest(name, sorted(known))
        home = distribution_of([searched.kind for searched in kinds], name)
        short = sorted(full for full in known if "/" not in full)
        hint = f"See: {_LISTINGS.get(kind, 'fuse info')}"
        if not guess and len(short) <= _MAX_LISTED:
            hint = f"Installed: {', '.join(short) or 'none'}"
        if kind is AlgorithmSpec and "," in name:
            guess, hint = "", f"List the stages of a pipeline: algorithm: [{name}]"
        if home is not None and home not in {plugin.distribution for plugin in self.plugins}:
            guess, hint = "", f"Install the plugin that provides it: pip install {home}"
        unloaded = [
            f"Not loaded: {plugin.distribution} ({plugin.status}: {plugin.detail})"
            for plugin in self.plugins
            if plugin.status is not PluginStatus.LOADED
        ]
        message = f"unknown {kind.kind} {name!r}{guess and f'; {guess}'}"
        return UnknownComponentError(message, hint="\n".join([hint, *unloaded]))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let formats be looked up among these plugins inside the block: see `active_plugins`."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    def clashes(self) -> Iterator[tuple[str, list[Component[Any]]]]:
        """Yield the names that several plugins give to components of one kind."""
        for kind in REGISTER_HOOKS.values():
            providers: dict[str, list[Component[Any]]] = {}
            for component in self.components(kind):
                for name in (component.spec.name, *component.spec.aliases):
                    providers.setdefault(name, []).append(component)
            yield from ((name, several) for name, several in providers.items() if len(several) > 1)

    def notify(self, hook: str, **arguments: object) -> list[Any]:
        """Call a life-cycle hook of every plugin, the last registered first.

        Returns the answers that are not None. An observer cannot end a run: any exception, a
        `FusionError` too, becomes a warning that names the plugin.
        """
        answers = []
        for implementation in reversed(getattr(self.hook, hook).get_hookimpls()):
            accepted = {name: arguments[name] for name in implementation.argnames}
            try:
                answers.append(implementation.function(**accepted))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - SystemExit included
                logger.warning(
                    "plugin %s failed in %s: %s",
                    implementation.plugin_name,
                    hook,
                    summarize_error(error),
                )
        return [answer for answer in answers if answer is not None]

    def check_run(self, run: RunInfo) -> None:
        """Let every plugin refuse a run. Raises its `FusionError`.

        Raises `BrokenPluginError` for any other exception: nobody knows whether the run may start.
        """
        for implementation in self.hook.fusion_check_run.get_hookimpls():
            accepted = {"run": run} if "run" in implementation.argnames else {}
            try:
                implementation.function(**accepted)
            except FusionError:
                raise
            except Exception as error:
                problem = f"plugin {implementation.plugin_name} failed to check the run"
                raise BrokenPluginError(f"{problem}: {summarize_error(error)}") from error

    def import_recipe(
        self, path: Path, text: str, folder: Path | None = None
    ) -> ImportedRecipe | None:
        """Return the recipe that another tool's file stands for; None if no plugin knows the tool.

        Raises `PluginError` if several plugins claim the file, by a recipe or by an error of the
        user's, or if one of them breaks.
        """
        arguments = {"path": path, "text": text, "folder": folder}
        claims: dict[str, ImportedRecipe | FusionError] = {}
        for implementation in self.hook.fusion_import_recipe.get_hookimpls():
            name = implementation.plugin_name
            accepted = {key: arguments[key] for key in implementation.argnames}
            try:
                claim: Any = implementation.function(**accepted)
            except FusionError as error:
                claim = error
            except Exception as error:
                problem = f"plugin {name} failed to import {path}: {summarize_error(error)}"
                raise BrokenPluginError(problem) from error
            if claim is not None:
                claims[name] = claim
        if len(claims) > 1:
            raise PluginError(
                f"several plugins import {path}: {', '.join(claims)}",
                hint="Block all but one with --no-plugin.",
            )
        imported = next(iter(claims.values()), None)
        if isinstance(imported, FusionError):
            raise imported
        return imported

    def kernels(self, elements: int | None = None) -> Mapping[str, tuple[str, str]]:
        """Return names and targets of kernels by the functions that they replace.

        `elements` leaves out those that are not worth loading for so few. Raises `PluginError` for
        two kernels that replace one function.
        """
        owners: dict[str, Component[KernelSpec]] = {}
        for component in self.components(KernelSpec):
            for function in component.spec.replaces:
                if function in owners:
                    names = owners[function].qualified_name, component.qualified_name
                    raise PluginError(
                        f"two kernels replace {function}: {' and '.join(names)}",
                        hint="Block one of the plugins with --no-plugin.",
                    )
                owners[function] = component
        return {
            function: (component.qualified_name, component.spec.target)
            for function, component in owners.items()
            if elements is None or elements >= component.spec.least_elements
        }

    def require_all(self) -> None:
        """Raise `BrokenPluginError` if a plugin is broken or incompatible, naming every one."""
        lines = [
            f"plugin {plugin.distribution} is {plugin.status}: {plugin.detail}"
            for plugin in self.plugins
            if plugin.status in {PluginStatus.BROKEN, PluginStatus.INCOMPATIBLE}
        ]
        if lines:
            raise BrokenPluginError("\n".join(lines), hint="See: fuse list-plugins -v")


_ACTIVE: ContextVar[PluginManager | None] = ContextVar("active plugins", default=None)


def active_plugins() -> PluginManager:
    """Return the plugins of the current run, or all plugins outside of one."""
    return _ACTIVE.get() or load_plugins()


@lru_cache
def load_plugins(block: frozenset[str] = frozenset()) -> PluginManager:
    """Return this environment's plugins, discovered once in a process."""
    manager = PluginManager()
    manager.discover(block=block)
    return manager
