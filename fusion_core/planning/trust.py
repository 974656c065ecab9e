"""What a recipe needs the trust of the person who runs it for: code that data or strangers name.

A recipe comes from anywhere, so it allows nothing. Components declare what they would do
(`ComponentConfig.needs_trust`) under names that their specs list. The person allows a name by
`--trust NAME`, by `FUSION_TRUST`, or by `RunOptions(trust=...)`. A component that is given as an
object, and not by a recipe, was made by that person and needs no more.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.specs import ComponentSpec
from fusion_core.errors import RecipeError
from fusion_core.shown import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from fusion_core.planning.resolved import Resolved
    from fusion_core.plugins.manager import PluginManager

    #: reasons by the name under which they are trusted
    Needs = Mapping[str, tuple[str, ...]]

TRUST_VARIABLE = "FUSION_TRUST"


def trust_in_environment() -> frozenset[str]:
    """Return the names that `FUSION_TRUST` lists, separated by commas."""
    listed = os.environ.get(TRUST_VARIABLE, "").split(",")
    return frozenset(name.strip() for name in listed if name.strip())


def needs_of(components: Iterable[Resolved[Any] | None]) -> Needs:
    """Return what components need trust for; None stands for one that a recipe does not name."""
    needs: dict[str, tuple[str, ...]] = {}
    for component in filter(None, components):
        for name, reason in component.needs_trust().items():
            needs[name] = tuple(dict.fromkeys((*needs.get(name, ()), reason)))
    return needs


def check_known(trust: Collection[str], plugins: PluginManager) -> None:
    """Raise `RecipeError` for a name that no installed component asks trust under."""
    known = {
        name for component in plugins.components(ComponentSpec) for name in component.spec.trust
    }
    for name in sorted(set(trust) - known):
        listed = f"Known names: {', '.join(sorted(known)) or 'none'}."
        raise RecipeError(
            f"unknown name `{name}` for --trust or {TRUST_VARIABLE}",
            hint=did_you_mean(name, known) or listed,
        )


def check_trusted(needs: Needs, trust: Collection[str]) -> None:
    """Raise `RecipeError` for what runs code and is not trusted; nothing has been started yet."""
    missing = {name: reasons for name, reasons in needs.items() if name not in trust}
    if not missing:
        return
    rows = [f"  {name}: {reason}" for name, reasons in missing.items() for reason in reasons]
    flags = " ".join(f"--trust {name}" for name in missing)
    raise RecipeError(
        "\n".join(["the recipe needs trust that you have not given:", *rows]),
        hint=f"If you know where the recipe comes from, add: {flags} "
        f"(or {TRUST_VARIABLE}={','.join(missing)}; in Python RunOptions(trust=...)).",
    )
