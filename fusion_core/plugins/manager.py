"""Find plugins, keep each one's failures to itself, and look components up by name.

The loader is ours because pluggy's lets one plugin's import error crash the host and silently drops
a second distribution that uses an entry-point name already seen. Here a plugin is its distribution:
that is what users install, block and uninstall. This module imports no plugin's classes.
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
    ModelPoolSpec,
    PipelineSpec,
    TaskPoolSpec,
)
from fusion_core.errors import (
    AmbiguousComponentError,
    BrokenPluginError,
    UnknownComponentError,
)
from fusion_core.machine.installed import CORE, GROUP, cause_of, declared_plugins
from fusion_core.plugins.components import Component, SpecT
from fusion_core.plugins.distributions import (
    BLOCK_VARIABLE,
    Plugin,
    PluginStatus,
    blocked_among,
    unmet_requirement,
)
from fusion_core.plugins.known import home_of
from fusion_core.shown import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from importlib import metadata

#: An import that takes longer is reported: every listing and every completion waits for it.
SLOW_SECONDS = 0.5

_REGISTER_HOOKS: dict[str, type[ComponentSpec]] = {
    "fusion_register_algorithms": AlgorithmSpec,
    "fusion_register_pipelines": PipelineSpec,
    "fusion_register_model_pools": ModelPoolSpec,
    "fusion_register_task_pools": TaskPoolSpec,
    "fusion_register_executors": ExecutorSpec,
    "fusion_register_formats": FormatSpec,
    "fusion_register_commands": CommandSpec,
}

logger = logging.getLogger(__name__)


class PluginManager(pluggy.PluginManager):
    """The plugins of this environment, in the order of their distributions' names."""

    def __init__(self) -> None:
        super().__init__(hookspecs.PROJECT)
        self.add_hookspecs(hookspecs)
        self.plugins: list[Plugin] = []

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:  # noqa: ANN401 - pluggy's type
        """Look at hooks only: pluggy < 1.7 reads every attribute, which wakes lazy modules up."""
        return super().parse_hookimpl_opts(plugin, name) if name.startswith("fusion_") else None

    def discover(self, *, block: Iterable[str] = ()) -> None:
        """Load every plugin of the environment that is not in `block` ("*" blocks all but us).

        Raises `PluginError` for a name to block that no installed plugin has.
        """
        found = declared_plugins()
        declared = [Plugin.declared(*each) for each in found]
        blocked = blocked_among({plugin.distribution for plugin in declared}, block)
        for plugin, (entry_point, distribution) in zip(declared, found, strict=True):
            known = {each.distribution for each in self.plugins}
            self.plugins.append(plugin)
            if plugin.distribution != CORE and blocked & {plugin.distribution, "*"}:
                plugin.status = PluginStatus.BLOCKED
                plugin.detail = f"blocked by --no-plugin or {BLOCK_VARIABLE}"
            elif plugin.distribution in known:
                plugin.status = PluginStatus.BROKEN
                plugin.detail = f"a distribution has one entry point in {GROUP}; this is a second"
            elif problem := unmet_requirement(distribution):
                plugin.status, plugin.detail = problem
            else:
                self._load(plugin, entry_point)

    def components(self, kind: type[SpecT] | tuple[type[SpecT], ...]) -> Iterator[Component[SpecT]]:
        """Every component of one kind, or of several."""
        for plugin in self.plugins:
            for spec in plugin.components:
                if isinstance(spec, kind):
                    yield Component(spec, plugin)

    def find(self, kind: type[SpecT], name: str) -> Component[SpecT]:
        """Look a component up by its name, an alias, or `distribution/name`.

        Raises `UnknownComponentError` with the closest names, `AmbiguousComponentError` if several
        plugins provide it.
        """
        return self._one(
            kind,
            name,
            [component for component in self.components(kind) if name in component.names],
        )

    def find_stages(self, name: str) -> Component[Any]:
        """Look up an algorithm or a pipeline, which share their names; raises as `find` does."""
        known = self._of_kinds(AlgorithmSpec, PipelineSpec)
        return self._one(AlgorithmSpec, name, [each for each in known if name in each.names])

    def _of_kinds(self, *kinds: type[ComponentSpec]) -> Iterator[Component[Any]]:
        for kind in kinds:
            yield from self.components(kind)

    def _one(
        self, kind: type[ComponentSpec], name: str, found: list[Component[SpecT]]
    ) -> Component[SpecT]:
        if not found:
            raise self._unknown(kind, name)
        if len(found) > 1:
            raise AmbiguousComponentError(
                f"{kind.kind} {name!r} is provided by several plugins: "
                + ", ".join(each.qualified_name for each in found),
                hint="Use one of these full names, or block a plugin with --no-plugin.",
            )
        return found[0]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let what is made in here find its formats among these plugins: see `active_plugins`."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    def clashes(self) -> Iterator[tuple[str, list[Component[Any]]]]:
        """Names that several plugins give to components of one kind: ambiguous as they are."""
        for kind in _REGISTER_HOOKS.values():
            answering: dict[str, list[Component[Any]]] = {}
            for component in self.components(kind):
                for name in (component.spec.name, *component.spec.aliases):
                    answering.setdefault(name, []).append(component)
            yield from ((name, found) for name, found in answering.items() if len(found) > 1)

    def notify(self, hook: str, **arguments: object) -> list[Any]:
        """Call a life-cycle hook of every plugin, the last registered first.

        Returns what they answer, if they do. One that raises is named in a warning, whatever it
        raises, a `FusionError` too: who only listens ends no run.
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
                    "plugin %s failed in %s: %s", implementation.plugin_name, hook, cause_of(error)
                )
        return [answer for answer in answers if answer is not None]

    def _load(self, plugin: Plugin, entry_point: metadata.EntryPoint) -> None:
        started = time.perf_counter()
        module: object = None
        try:
            with redirect_stdout(sys.stderr):  # stdout carries results alone
                module = entry_point.load()
                self.register(module, name=plugin.distribution)
                self.check_pending()
                plugin.components = list(self._registered_by(plugin.distribution))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit at import included
            plugin.status = PluginStatus.BROKEN
            plugin.detail = cause_of(error)
            plugin.error = error
            if module is not None and self.is_registered(module):
                self.unregister(module)
        plugin.seconds = time.perf_counter() - started

    def _registered_by(self, distribution: str) -> Iterator[ComponentSpec]:
        seen: set[tuple[type, str]] = set()
        for hook, kind in _REGISTER_HOOKS.items():
            for implementation in getattr(self.hook, hook).get_hookimpls():
                if implementation.plugin_name != distribution:
                    continue
                for spec in implementation.function():
                    if not isinstance(spec, kind):
                        raise TypeError(
                            f"{hook} returned {spec!r}, not an instance of {kind.__name__}"
                        )
                    if (kind, spec.name) in seen:
                        raise ValueError(f"{hook} returned {spec.name!r} twice")
                    seen.add((kind, spec.name))
                    yield spec

    def _unknown(self, kind: type[ComponentSpec], name: str) -> UnknownComponentError:
        kinds = (AlgorithmSpec, PipelineSpec) if kind is AlgorithmSpec else (kind,)
        components = self._of_kinds(*kinds)
        known = sorted({name for component in components for name in component.names})
        short = [each for each in known if "/" not in each]
        meant, home = did_you_mean(name, known), home_of([kind.kind for kind in kinds], name)
        if home is not None and home not in {plugin.distribution for plugin in self.plugins}:
            meant = f"it comes with {home}: pip install {home}"
        lines = [meant or f"installed: {', '.join(short) or 'none'}"]
        lines += [
            f"not loaded: {plugin.distribution} ({plugin.status}: {plugin.detail})"
            for plugin in self.plugins
            if plugin.status is not PluginStatus.LOADED
        ]
        return UnknownComponentError(f"there is no {kind.kind} {name!r}", hint="\n".join(lines))

    def require_all(self) -> None:
        """Raise `BrokenPluginError` naming every plugin that should have loaded and did not."""
        wanting = (PluginStatus.BROKEN, PluginStatus.INCOMPATIBLE)
        lines = [
            f"plugin {plugin.distribution} is {plugin.status}: {plugin.detail}"
            for plugin in self.plugins
            if plugin.status in wanting
        ]
        if lines:
            raise BrokenPluginError("\n".join(lines), hint="See: fuse list-plugins -v")


_ACTIVE: ContextVar[PluginManager | None] = ContextVar("active plugins", default=None)


def active_plugins() -> PluginManager:
    """Return the plugins among which a run makes something right now; outside of one, all."""
    return _ACTIVE.get() or load_plugins()


@lru_cache
def load_plugins(block: frozenset[str] = frozenset()) -> PluginManager:
    """Return this environment's plugins, discovered once in a process."""
    manager = PluginManager()
    manager.discover(block=block)
    return manager
