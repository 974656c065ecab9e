"""Trust: a recipe may run code only with the permission of the person who runs it.

Recipes come from anywhere and cannot grant permissions. A component declares the actions that its
options cause (`ComponentConfig.needs_trust`) under names that its spec lists. The person allows a
name by `--trust NAME`, `FUSION_TRUST`, or `RunOptions(trust=...)`. Components that are passed as
objects were created by that person and need no permission.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.specs import ComponentSpec
from fusion_core.errors import RecipeError
from fusion_core.formatting import suggest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from fusion_core.planning.resolved_recipe import Resolved
    from fusion_core.plugins.manager import PluginManager

    #: actions that need trust, by the name of the trust
    Needs = Mapping[str, tuple[str, ...]]

TRUST_VARIABLE = "FUSION_TRUST"


def trust_in_environment() -> frozenset[str]:
    """Return the names that `FUSION_TRUST` lists, separated by commas."""
    names = os.environ.get(TRUST_VARIABLE, "").split(",")
    return frozenset(name.strip() for name in names if name.strip())


def collect_needs(components: Iterable[Resolved[Any] | None]) -> Needs:
    """Return the actions of components that need trust; None entries are ignored."""
    needs: dict[str, tuple[str, ...]] = {}
    for component in filter(None, components):
        for name, action in component.needs_trust().items():
            needs[name] = tuple(dict.fromkeys((*needs.get(name, ()), action)))
    return needs


def check_trust_names(trust: Collection[str], plugins: PluginManager) -> None:
    """Raise `RecipeError` for a name that no installed component's spec lists."""
    known = {
        name for component in plugins.components(ComponentSpec) for name in component.spec.trust
    }
    for name in sorted(set(trust) - known):
        raise RecipeError(
            f"unknown name `{name}` for --trust or {TRUST_VARIABLE}",
            hint=suggest(name, known) or f"Known names: {', '.join(sorted(known)) or 'none'}.",
        )


def check_trusted(needs: Needs, trust: Collection[str]) -> None:
    """Raise `RecipeError` for actions that are not trusted; called before any of them happens."""
    missing = {name: actions for name, actions in needs.items() if name not in trust}
    if not missing:
        return
    rows = [f"  {name}: {action}" for name, actions in missing.items() for action in actions]
    flags = " ".join(f"--trust {name}" for name in missing)
    raise RecipeError(
        "\n".join(["the recipe needs trust that you have not given:", *rows]),
        hint=f"If you know where the recipe comes from, add: {flags} "
        f"(or {TRUST_VARIABLE}={','.join(missing)}; in Python RunOptions(trust=...)).",
    )
