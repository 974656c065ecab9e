"""The section `algorithm` of a recipe: a method's options, and its curves by depth."""

from __future__ import annotations

from dataclasses import dataclass, field
from glob import escape
from itertools import product
from typing import TYPE_CHECKING, Any

from recipes_mergekit.settings import constant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from recipes_mergekit.configuration import Slice
    from recipes_mergekit.parameters import Setting
    from recipes_mergekit.settings import Rule, Rules

#: An option, and the expert whose value it is; None for one value for all.
_Option = tuple[str, str | None]
#: A filter, and an option's value for the tensors whose names contain it; None for all others.
_Choice = tuple[str | None, Any]


@dataclass
class Algorithm:
    """A method with its options. Options that vary between tensors are curves."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    curves: dict[_Option, Setting] = field(default_factory=dict)
    #: options that vary by filter, with their values
    switches: dict[str, list[_Choice]] = field(default_factory=dict)

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
        value = chosen[-1][1]
        varies = len({choice for _, choice in chosen}) > 1
        if varies:
            self.switches[option] = chosen
        if varies or value != default:
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
        if self.switches:
            section["overrides"] = [*self._make_overrides()]
        if self.curves:
            section["by_depth"] = [*self._make_curves(slices)]
        return section

    def _make_overrides(self) -> Iterator[dict[str, Any]]:
        """Yield the switches by filter.

        Each switch has its own first filter that matches a tensor. So every combination of their
        filters is one entry, in their order.
        """
        for combination in product(*self.switches.values()):
            patterns = [pattern for pattern, _ in combination if pattern is not None]
            if patterns:
                values = {
                    option: value
                    for option, (_, value) in zip(self.switches, combination, strict=True)
                }
                yield {**_match(*dict.fromkeys(patterns)), **values}

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


def _match(*texts: str) -> dict[str, Any]:
    """Return what matches names that contain one or two texts. mergekit allows that none does."""
    patterns = [f"*{escape(text)}*" for text in texts]
    if len(texts) > 1:
        patterns = _contain_both(*texts)
    return {"match": patterns if len(patterns) > 1 else patterns[0], "unmatched": "warn"}


def _contain_both(one: str, other: str) -> list[str]:
    """Return the patterns of names that contain two texts, which may overlap."""
    for longer, shorter in ((one, other), (other, one)):
        if shorter in longer:
            return [f"*{escape(longer)}*"]
    patterns = []
    for left, right in ((one, other), (other, one)):
        patterns.append(f"*{escape(left)}*{escape(right)}*")
        shared = (n for n in range(1, min(len(left), len(right))) if left.endswith(right[:n]))
        patterns += [f"*{escape(left + right[n:])}*" for n in shared]
    return patterns


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
