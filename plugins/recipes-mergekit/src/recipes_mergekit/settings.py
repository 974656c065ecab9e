"""Values of mergekit's parameters: scalars, gradients by depth, and filters by tensor name.

A parameter's value for a tensor is that of the first rule whose filter is a part of the tensor's
name. A rule with several values is a gradient, from the first layer of a slice to its last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.commands import format_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_TRUE, _FALSE = {"true", "yes", "on", "y", "1"}, {"false", "no", "off", "n", "0"}


@dataclass(frozen=True)
class Rule:
    """The values of the tensors whose names contain `filter`; of all others if it is None."""

    filter: str | None
    values: tuple[float, ...]


#: The rules of one parameter: the first that matches decides, and the last matches every tensor.
Rules = tuple[Rule, ...]


def constant(rules: Rules) -> float | None:
    """Return the value that all tensors have, or None if they differ."""
    values = {value for rule in rules for value in rule.values}
    return values.pop() if len(values) == 1 else None


def change(rules: Rules, function: Callable[[float], float]) -> Rules:
    """Return rules with other values."""
    return tuple(Rule(rule.filter, tuple(map(function, rule.values))) for rule in rules)


def read_rules(levels: Iterable[object], convert: Callable[[object], float]) -> list[Rule]:
    """Return the rules of a parameter's settings, given from the highest precedence down.

    The last rule matches every tensor if a setting does. `convert` reads a scalar. Raises
    `ValueError` for a malformed setting.
    """
    rules: list[Rule] = []
    for setting in levels:
        for rule in _read_setting(setting, convert):
            if all(rule.filter != known.filter for known in rules):
                rules.append(rule)
            if rule.filter is None:
                return rules
    return rules


def _read_setting(setting: object, convert: Callable[[object], float]) -> list[Rule]:
    listed = setting if isinstance(setting, list) else [setting]
    conditions = [condition for condition in listed if isinstance(condition, dict)]
    if conditions and len(conditions) == len(listed):
        return [_read_condition(condition, convert) for condition in conditions]
    return [Rule(None, _read_values(setting, convert))]


def _read_condition(condition: Mapping[str, Any], convert: Callable[[object], float]) -> Rule:
    pattern = condition.get("filter")
    if not {"value"} <= condition.keys() <= {"value", "filter"}:
        raise ValueError(f"expected a mapping of filter and value, got {format_value(condition)}")
    if not isinstance(pattern, str | None):
        raise ValueError(f"expected a text as the filter, got {format_value(pattern)}")  # noqa: TRY004 - one kind of error
    matches_all = pattern in {None, "*", ""}
    return Rule(None if matches_all else pattern, _read_values(condition["value"], convert))


def _read_values(value: object, convert: Callable[[object], float]) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("expected at least one value")
    return tuple(map(convert, values))


def read_number(value: object) -> float:
    """Return a scalar as a number. mergekit takes numbers in quotes, too."""
    if isinstance(value, str | int | float):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise ValueError(f"expected a number, got {format_value(value)}")


def read_switch(value: object) -> float:
    """Return a truth value, or a word that YAML 1.1 reads as one, as 1 or 0."""
    word = str(int(value) if isinstance(value, float) and value.is_integer() else value).lower()
    if isinstance(value, str | bool | int | float) and word in _TRUE | _FALSE:
        return float(word in _TRUE)
    raise ValueError(f"expected true or false, got {format_value(value)}")
