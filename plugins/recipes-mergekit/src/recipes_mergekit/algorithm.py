"""The section `algorithm` of a recipe: a method's options, and its curves by depth."""

from __future__ import annotations

from dataclasses import dataclass, field
from glob import escape
from typing import TYPE_CHECKING, Any

from recipes_mergekit.settings import constant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from recipes_mergekit.configuration import Slice
    from recipes_mergekit.parameters import Setting
    from recipes_mergekit.settings import Rule, Rules

#: An option, and the expert whose value it is; None for one value for all.
_Option = tuple[str, str | None]


@dataclass
class Algorithm:
    """A method with its options. Options that vary between tensors are curves."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    curves: dict[_Option, Setting] = field(default_factory=dict)
    overrides: list[dict[str, Any]] = field(default_factory=list)

    def set(self, option: str, setting: Setting) -> None:
        """Set an option of all experts."""
        value = _constant(setting)
        if value is None:
            self.curves[option, None] = setting
        else:
            self.options[option] = value

    def set_weights(self, option: str, settings: Mapping[str, Setting]) -> None:
        """Set an option of every expert whose default is 1 for each."""
        if any(_constant(setting) != 1 for setting in settings.values()):
            self._set_each(option, settings)

    def set_fractions(self, option: str, settings: Mapping[str, Setting]) -> None:
        """Set an option of every expert that may be one value for all."""
        if len({*settings.values()}) == 1:
            self.set(option, next(iter(settings.values())))
        else:
            self._set_each(option, settings)

    def set_switch(
        self,
        option: str,
        rules: Rules,
        choices: Sequence[Any] = (False, True),
        default: Any = None,  # noqa: ANN401 - an option's value
    ) -> None:
        """Set an option by truth values, to the first choice for false and the second for true.

        A value that all tensors have is left out if it is the `default`.
        """
        chosen = [(rule.filter, choices[int(rule.values[0])]) for rule in rules]
        varies = len({value for _, value in chosen}) > 1
        for pattern, value in chosen if varies else chosen[-1:]:
            if varies and pattern is not None:
                self.overrides.append({**_match(pattern), option: value})
            elif varies or value != default:
                self.options[option] = value

    def _set_each(self, option: str, settings: Mapping[str, Setting]) -> None:
        values = {expert: _constant(setting) for expert, setting in settings.items()}
        if None in values.values():
            self.curves |= {(option, expert): setting for expert, setting in settings.items()}
        else:
            self.options[option] = values

    def as_section(self, slices: Sequence[Slice]) -> dict[str, Any]:
        """Return the section of the recipe."""
        section: dict[str, Any] = {"name": self.name, **self.options}
        if self.overrides:
            section["overrides"] = self.overrides
        if self.curves:
            section["by_depth"] = [*self._make_curves(slices)]
        return section

    def _make_curves(self, slices: Sequence[Slice]) -> Iterator[dict[str, Any]]:
        """Yield the curves of every slice. The first that covers a tensor gives it its value.

        mergekit gives a slice's only layer the last value of a gradient, and tensors outside of the
        layers the first.
        """
        start = 0
        for number, part in enumerate(slices):
            rules = {option: setting[number] for option, setting in self.curves.items()}
            layers = {"layers": [start, start + part.length]}
            start += part.length
            side = {0: "before", len(slices) - 1: "after"}.get(number)
            outside = {} if side is None else {"outside": side}
            if len(slices) == 1:
                outside = {"outside": "all"}
            has_gradient = any(len(rule.values) > 1 for chain in rules.values() for rule in chain)
            if part.length == 1 and has_gradient:
                yield from _curves_of(rules, layers, slice(-1, None))
                yield from _curves_of(rules, {**layers, **outside}, slice(1)) if outside else ()
            else:
                where = outside if len(slices) == 1 else {**layers, **outside}
                yield from _curves_of(rules, where, slice(None))


def _curves_of(
    rules: Mapping[_Option, Rules], where: Mapping[str, Any], chosen: slice
) -> Iterator[dict[str, Any]]:
    """Yield the curves of one slice with the chosen values."""
    for pattern, values in _merge_rules(rules):
        match = {} if pattern is None else _match(pattern)
        yield {**match, **where, **_nest(values, chosen)}


def _match(pattern: str) -> dict[str, Any]:
    """Return what matches names that contain a text. mergekit allows that there are none."""
    return {"match": f"*{escape(pattern)}*", "unmatched": "warn"}


def _constant(setting: Setting) -> float | None:
    values = {constant(rules) for rules in setting}
    return values.pop() if len(values) == 1 else None


def _merge_rules(
    rules: Mapping[_Option, Rules],
) -> Iterator[tuple[str | None, dict[_Option, Rule]]]:
    """Yield filters with the rules that have them, so that each option keeps its order."""
    waiting = {option: [*chain] for option, chain in rules.items()}
    while any(waiting.values()):
        heads = [chain[0] for chain in waiting.values() if chain]
        patterns = dict.fromkeys(rule.filter for rule in heads)
        patterns.pop(None, None)  # rules for all tensors come last
        pattern = next(iter(patterns), None)
        chosen = {
            option: chain.pop(0)
            for option, chain in waiting.items()
            if chain and chain[0].filter == pattern
        }
        yield pattern, chosen


def _nest(rules: Mapping[_Option, Rule], chosen: slice) -> dict[str, Any]:
    """Return the chosen values of options as a curve holds them."""
    options: dict[str, Any] = {}
    for (option, expert), rule in rules.items():
        values = [*rule.values[chosen]]
        if expert is None:
            options[option] = values
        else:
            options.setdefault(option, {})[expert] = values
    return options
