"""Interpolations such as `${.path}`, as OmegaConf resolves them within a file.

OmegaConf itself is not used: its resolvers read environment variables, and its results have no
bound, while a file here comes from anywhere. Values that need a resolver (`${oc.env:...}`,
`${hydra:...}`) or a node that does not exist stay `Unresolved`. They matter only if they are used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fusion_core.errors import RecipeError

#: One interpolation without another one inside.
_INTERPOLATION = re.compile(r"\$\{([^${}]*)\}")
_KEYS = re.compile(r"[^.\[\]]+")
_MISSING = "???"
#: Bounds on the resolved file.
_MAX_VALUES = 100_000
_MAX_CHARACTERS = 2**20
_MAX_DEPTH = 100

_Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Unresolved:
    """A value that the file does not determine."""

    text: str
    reason: str

    def __repr__(self) -> str:
        return f"{self.text} ({self.reason})"


def resolve(root: Any) -> Any:  # noqa: ANN401 - YAML holds anything
    """Return a file's content with all interpolations replaced.

    Raises `RecipeError` if they unfold into more than the bounds.
    """
    return _Resolver(root).resolve((), root, ())


class _Resolver:
    """Resolves values of one file."""

    def __init__(self, root: Any) -> None:  # noqa: ANN401
        self._root = root
        self._values = self._characters = self._depth = 0

    def resolve(self, path: _Path, value: Any, above: tuple[_Path, ...]) -> Any:  # noqa: ANN401
        """Return the value at a path; `above` are the paths that need it."""
        self._values += 1
        if self._values > _MAX_VALUES or self._depth > _MAX_DEPTH:
            raise RecipeError("interpolations unfold into too many values")
        self._depth += 1
        try:
            return self._resolve_inside(path, value, above)
        finally:
            self._depth -= 1

    def _resolve_inside(self, path: _Path, value: Any, above: tuple[_Path, ...]) -> Any:  # noqa: ANN401
        match value:
            case dict():
                return {key: self.resolve((*path, key), item, above) for key, item in value.items()}
            case list():
                return [
                    self.resolve((*path, number), item, above) for number, item in enumerate(value)
                ]
            case str() if value == _MISSING:
                return Unresolved(value, "a mandatory value is missing")
            case str() if "${" in value:
                return self._resolve_text(path, value, above)
            case _:
                return value

    def _resolve_text(self, path: _Path, text: str, above: tuple[_Path, ...]) -> Any:  # noqa: ANN401
        if path in above:
            return Unresolved(text, "interpolations need each other")
        resolved = text
        while (match := _INTERPOLATION.search(resolved)) is not None:
            value = self._look_up(path, match[1].strip(), (*above, path))
            if isinstance(value, Unresolved) or match[0] == resolved:
                return value
            if isinstance(value, dict | list):
                return Unresolved(text, "expected a text or a number inside a text")
            resolved = f"{resolved[: match.start()]}{value}{resolved[match.end() :]}"
            self._characters += len(resolved)
            if self._characters > _MAX_CHARACTERS:
                raise RecipeError("interpolations unfold into too long a text")
        return (
            Unresolved(text, "not an interpolation of OmegaConf") if "${" in resolved else resolved
        )

    def _look_up(self, path: _Path, reference: str, above: tuple[_Path, ...]) -> Any:  # noqa: ANN401
        """Return the resolved value that an interpolation at a path names."""
        shown = f"${{{reference}}}"
        if ":" in reference:
            return Unresolved(shown, "the file does not determine it")
        relative = reference.lstrip(".")
        dots = len(reference) - len(relative)
        if dots > len(path):
            return Unresolved(shown, "it leaves the file")
        target: _Path = path[: len(path) - dots] if dots else ()
        value = self._root
        for key in target:
            value = value[key]
        for key in _KEYS.findall(relative):
            if isinstance(value, str) and target not in above:  # itself an interpolation
                value = self.resolve(target, value, above)
            value, step = _step(value, key)
            if step is None:
                return Unresolved(shown, "no such key")
            target = (*target, step)
        if target in above or target == path[: len(target)]:
            return Unresolved(shown, "interpolations need each other")
        return self.resolve(target, value, above)


def _step(value: Any, key: str) -> tuple[Any, str | int | None]:  # noqa: ANN401
    """Return an item of a mapping or list, and its key; None as the key if there is none."""
    if isinstance(value, dict) and key in value:
        return value[key], key
    if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
        return value[int(key)], int(key)
    return None, None
