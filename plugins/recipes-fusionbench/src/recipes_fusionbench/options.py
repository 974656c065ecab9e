"""Reading of the options of a section: each is taken once, and what is left over is reported."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fusion_core.commands import format_value
from recipes_fusionbench.interpolation import Unresolved

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from recipes_import import ImportFindings

#: Words that YAML 1.1, which FusionBench reads, takes for truth values.
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
#: The number of an option that is missing or invalid; it is in the range of all options.
_FALLBACK = 0.5
#: Keys of every section that say how it is instantiated.
_INSTANTIATION = frozenset(
    {"_target_", "_partial_", "_recursive_", "_convert_", "_usage_", "_version_"}
)


class Options:
    """The options of one section. `key` is its key in the file."""

    def __init__(self, values: Mapping[str, Any], key: str, findings: ImportFindings) -> None:
        self.values, self.key, self._findings = values, key, findings
        self._taken = {*_INSTANTIATION}

    def has(self, name: str) -> bool:
        """Return whether an option is given, and not null."""
        return self.values.get(name) is not None

    def take(self, name: str, default: object = None) -> Any:  # noqa: ANN401 - YAML holds anything
        """Return an option as it is; null counts as not given.

        A value that the file does not determine is a problem, and counts as not given.
        """
        self._taken.add(name)
        value = self.values.get(name)
        if isinstance(value, Unresolved):
            self.refuse(name, f"{value.text}: {value.reason}")
            value = None
        return default if value is None else value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number, which is required without a default."""
        number = self._read_number(name, default)
        if number is not None:
            return number
        return _FALLBACK if default is None else default

    def _read_number(self, name: str, default: float | None) -> float | None:
        """Return a finite number; None after recording why there is none."""
        value = self.take(name, default)
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
        self.refuse(
            name, "missing" if value is None else f"expected a number, got {format_value(value)}"
        )
        return None

    def count(self, name: str, default: int | None = None) -> int:
        """Return a whole number of at least 1."""
        number = self._read_number(name, default)
        if number is None:
            return 1
        if number < 1 or not number.is_integer():
            self.refuse(
                name, f"expected a whole number above 0, got {format_value(self.values.get(name))}"
            )
        return int(number)

    def switch(self, name: str, *, default: bool) -> bool:
        """Return a truth value."""
        value = self.take(name, default)
        value = _WORDS.get(value.lower(), value) if isinstance(value, str) else value
        if isinstance(value, bool):
            return value
        self.refuse(name, f"expected true or false, got {format_value(value)}")
        return default

    def text(self, name: str) -> str | None:
        """Return a text; None if it is not given."""
        value = self.take(name)
        if value is None or (isinstance(value, str) and value):
            return value
        self.refuse(name, f"expected a text, got {format_value(value)}")
        return None

    def texts(self, name: str) -> list[str]:
        """Return a list of texts; empty if it is not given."""
        value = self.take(name, [])
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
        self.refuse(name, f"expected a list of texts, got {format_value(value)}")
        return []

    def items(self, name: str) -> dict[str, Any]:
        """Return a mapping of texts."""
        value = self.take(name, {})
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return value
        self.refuse(name, f"expected a mapping of names, got {format_value(value)}")
        return {}

    def section(self, name: str) -> Options:
        """Return a nested section; empty if it is not given."""
        return Options(self.items(name), self._join(name), self._findings)

    def expect(self, name: str, *allowed: object, reason: str) -> None:
        """Refuse any other value than those allowed, than null, and than an empty list."""
        value = self.take(name)
        if not (value is None or value == [] or any(value == one for one in allowed)):
            self.refuse(name, reason)

    def ignore(self, *names: str) -> None:
        """Accept options without an effect on values, silently: they choose how, not what."""
        self._taken.update(names)

    def refuse(self, name: str, reason: str) -> None:
        """Record that the recipe cannot express an option."""
        self._findings.refuse(self._join(name), reason)

    def warn(self, name: str, reason: str) -> None:
        """Record that an option has another effect, or none."""
        self._findings.warn(self._join(name), reason)

    def _join(self, name: str) -> str:
        return ".".join(filter(None, (self.key, name)))

    def finish(self, known: Iterable[str] = ()) -> None:
        """Report options that were not taken. FusionBench ignores unknown ones."""
        for name in self._left_over():
            names = [*self._taken - _INSTANTIATION, *known]
            self._findings.report_unknown(self._join(name), names)

    def refuse_others(self) -> None:
        """Refuse options that were not taken: of a function, which may load other weights."""
        for name in self._left_over():
            self.refuse(name, "may load other weights, and has no counterpart")

    def _left_over(self) -> list[str]:
        return [name for name in self.values if name not in self._taken]


def target_of(values: Mapping[str, Any]) -> str:
    """Return the class that a section names, without its package `fusion_bench`; "" if none."""
    target = values.get("_target_")
    if isinstance(target, str) and target.startswith("fusion_bench."):
        return target.rpartition(".")[2]
    return ""


def class_of(values: Mapping[str, Any], legacy: str) -> str:
    """Return the class that a section names, or what an older section names by another key."""
    name = values.get(legacy) if values.get("_target_") is None else target_of(values)
    return name if isinstance(name, str) else ""
