"""Inspect the package of a component: its installation, its requirements and its imports."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from fusion_core.errors import PluginError
from fusion_core.machine.distributions import CORE
from fusion_core.plugins.distributions import PluginStatus
from fusion_core.plugins.manager import load_plugins
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from fusion_core.contracts.specs import ComponentSpec
    from fusion_core.plugins.components import Component

#: Packages that take long to import. Only runs may import them, not listings or options.
HEAVY = frozenset(
    {
        *("torch", "torchvision", "transformers", "huggingface_hub", "datasets", "tensorflow"),
        *("jax", "numpy", "scipy", "sklearn", "pandas", "pyarrow", "matplotlib", "PIL"),
    }
)
#: Packages that configurations may import, but listings may not.
FOR_OPTIONS = frozenset({"pydantic", "ruamel", "rich"})


def find_component(spec: ComponentSpec) -> Component[Any] | None:
    """Return the installed component with exactly this spec; None if there is none."""
    components = load_plugins().components(type(spec))
    return next((component for component in components if component.spec == spec), None)


def require_component(spec: ComponentSpec) -> Component[Any]:
    """Return the installed component with exactly this spec; fail if there is none."""
    if (component := find_component(spec)) is not None:
        return component
    broken = [
        f"{plugin.distribution} is {plugin.status}: {plugin.detail}"
        for plugin in load_plugins().plugins
        if plugin.status is not PluginStatus.LOADED
    ]
    return fail(
        f"no installed plugin registers {spec.kind} {spec.name!r}. {'; '.join(broken)}",
        "Install the package with `pip install -e .`. Check that "
        '[project.entry-points."fusion_core.plugins"] in its pyproject.toml names the module with '
        "the hooks.",
    )


def needs_core_within_bounds(distribution: str) -> bool:
    """Tell whether a distribution requires fusion-core with a lower and an upper bound."""
    try:
        return any(map(_is_bounded, metadata.requires(distribution) or ()))
    except metadata.PackageNotFoundError:
        return False


def _is_bounded(line: str) -> bool:
    from packaging.requirements import Requirement

    requirement = Requirement(line)
    name = requirement.name.lower().replace("_", "-").replace(".", "-")
    operators = {specifier.operator for specifier in requirement.specifier}
    above, below = operators & {">", ">=", "~=", "=="}, operators & {"<", "<=", "~=", "=="}
    return name == CORE and bool(above) and bool(below)


def fail_if_heavy(module: str, user: str, remedy: str, *, heavy: frozenset[str] = HEAVY) -> None:
    """Fail if a module imports heavy packages, which would slow down its `user`."""
    imported = _imported_by(module) & heavy
    if imported:
        names = ", ".join(sorted(imported))
        fail(f"the module {module!r} imports {names}, which slows down {user}.", remedy)


@lru_cache
def _imported_by(module: str) -> frozenset[str]:
    """Return the top-level packages that a module imports, in a new process."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PluginError(f"{module} cannot be imported:\n{done.stderr}")
    return frozenset(name.partition(".")[0] for name in done.stdout.split())
