"""Composition of a file with a list of defaults, as Hydra composes it.

Hydra itself is not used: it reads YAML without bounds, keeps global state, and loads plugins. The
forms of FusionBench's configurations are composed here; others are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusion_core.commands import format_value
from fusion_core.errors import RecipeError
from recipes_fusionbench.known import find_known

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recipes_fusionbench.tree import Tree
    from recipes_import import ImportFindings

_DEFAULTS, _SELF, _MISSING = "defaults", "_self_", "???"
#: Groups that configure Hydra and the machine, not the merge.
_IGNORED = {"hydra", "fabric", "path", "loggers"}
#: FusionBench's programs, which other files have as their first default.
PROGRAMS = ("fabric_model_fusion", "model_fusion")
_MAX_DEPTH = 20


@dataclass(frozen=True)
class Default:
    """One entry of a list of defaults."""

    #: the group, relative to the file's own unless it begins with a slash; None for a plain file
    group: str | None
    #: where the content goes, relative to the file's own package; None: where the group says
    package: str | None
    names: tuple[str, ...]
    is_override: bool = False
    is_optional: bool = False


def read_default(entry: object) -> Default | None:
    """Return an entry of a list of defaults; None for a form that is not supported."""
    match entry:
        case str() if _is_plain(entry):
            return Default(None, None, (entry,))
        case dict() if len(entry) == 1:
            ((key, value),) = entry.items()
        case _:
            return None
    names = [] if value is None else value if isinstance(value, list) else [value]
    if not isinstance(key, str) or not all(isinstance(name, str) for name in names):
        return None
    *words, target = key.split() or [""]
    group, at, package = target.partition("@")
    if {*words} - {"override", "optional"} or not all(map(_is_plain, (group, package, *names))):
        return None
    flags = {"is_override": "override" in words, "is_optional": "optional" in words}
    return Default(group, package if at else None, tuple(names), **flags)


def _is_plain(text: str) -> bool:
    return not {*"${}[]"} & {*text}


@dataclass
class Composition:
    """Composes one file with the files that its defaults name."""

    tree: Tree
    findings: ImportFindings
    #: the names that `override` chooses, by group
    _chosen: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: the groups that were added, with their packages
    _added: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)

    def compose(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of a file and its defaults, with interpolations as they are."""
        result: dict[str, Any] = {}
        self._add(result, document, "", (), ())
        return result

    def _add(
        self,
        result: dict[str, Any],
        document: Mapping[str, Any],
        group: str,
        package: tuple[str, ...],
        above: tuple[str, ...],
    ) -> None:
        """Merge a file of a group into a package; `above` are the files that name it."""
        defaults = self._read_defaults(document, above)
        for default in defaults:
            if default.is_override and default.group is not None:
                self._chosen.setdefault(_join(group, default.group), default.names)
        if not any(default.names == (_SELF,) for default in defaults):
            defaults.append(Default(None, None, (_SELF,)))
        for default in defaults:
            if default.names == (_SELF,):
                _merge_at(result, document, package)
            elif not default.is_override:
                self._add_default(result, default, group, package, above)

    def _add_default(
        self,
        result: dict[str, Any],
        default: Default,
        group: str,
        package: tuple[str, ...],
        above: tuple[str, ...],
    ) -> None:
        names, below = default.names, _join(group, default.group or "")
        if default.group is not None:
            names = self._chosen.get(below, names)
            inner = default.group.strip("/").split("/")
            if default.package is not None:
                inner = [part for part in default.package.split(".") if part]
            package = tuple(inner) if inner[:1] == ["_global_"] else (*package, *inner)
            package = tuple(part for part in package if part != "_global_")
        if below.split("/")[0] in _IGNORED:
            return
        if default.group is not None and (below, package) in self._added:
            self.findings.refuse(f"defaults.{below}", f"chosen twice; write override {below}")
        self._added.add((below, package))
        for name in names:
            path = _join(below, name.removesuffix(".yaml"))
            content = self._find(path)
            if path in above or len(above) > _MAX_DEPTH:
                raise RecipeError(f"defaults need each other: {' -> '.join([*above, path])}")
            if content is not None:
                self._add(result, content, below, package, (*above, path))
            elif not default.is_optional:
                self._refuse_name(path)

    def _find(self, path: str) -> Mapping[str, Any] | None:
        content = self.tree.read(path)
        return find_known(path) if content is None else content

    def _refuse_name(self, path: str) -> None:
        reason = (
            f"unknown name; found neither in {self.tree.folder} nor in an installed FusionBench. "
            "Name its folder by fuse import --config-dir, or save what fusion_bench --cfg job shows"
        )
        self.findings.refuse(f"defaults.{path}", reason)

    def _read_defaults(self, document: Mapping[str, Any], above: tuple[str, ...]) -> list[Default]:
        listed = document.get(_DEFAULTS) or []
        where = ".".join(("defaults", *above[-1:]))
        if not isinstance(listed, list):
            self.findings.refuse(where, f"expected a list, got {format_value(listed)}")
            return []
        defaults: list[Default] = []
        for entry in listed:
            default = read_default(entry)
            if default is None:
                self.findings.refuse(where, f"unsupported entry {format_value(entry)}")
            else:
                defaults.append(default)
        return defaults


def _join(group: str, name: str) -> str:
    """Return the path of a name in a group, or of an absolute name."""
    return name.strip("/") if name.startswith("/") else "/".join(filter(None, (group, name)))


def _merge_at(
    result: dict[str, Any], document: Mapping[str, Any], package: tuple[str, ...]
) -> None:
    content = {key: value for key, value in document.items() if key != _DEFAULTS}
    for key in reversed(package):
        content = {key: content}
    _merge(result, content)


def _merge(result: dict[str, Any], content: Mapping[str, Any]) -> None:
    """Merge mappings into each other. Every other value replaces the one before, unless missing."""
    for key, value in content.items():
        if isinstance(value, dict):
            inner = result.get(key)
            result[key] = inner = dict(inner) if isinstance(inner, dict) else {}
            _merge(inner, value)
        elif value != _MISSING or key not in result:
            result[key] = value
