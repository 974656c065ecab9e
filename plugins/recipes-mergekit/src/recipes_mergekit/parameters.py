"""The parameters of one merge, resolved as mergekit does, from a model's own up to the file's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipes_mergekit.settings import (
    Rule,
    Rules,
    change,
    constant,
    read_number,
    read_rules,
    read_switch,
)
from recipes_mergekit.values import PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from recipes_import import ImportFindings
    from recipes_mergekit.configuration import Configuration, Slice, Source
    from recipes_mergekit.methods import Method

#: The rules of one parameter in every slice.
Setting = tuple[Rules, ...]


@dataclass(frozen=True)
class Parameters:
    """Looks parameters up for the experts of a merge."""

    configuration: Configuration
    #: the experts of every slice, in the order of `experts`
    sources: Sequence[Sequence[Source]]
    experts: Sequence[str]
    findings: ImportFindings

    def shared(self, name: str, default: float | None = None) -> Setting:
        """Return the rules of a parameter of the whole merge; required without a default."""
        return tuple(
            self._resolve(name, [part.parameters, self.configuration.parameters], default, part.key)
            for part in self.configuration.slices
        )

    def by_expert(self, name: str, default: float | None = None) -> dict[str, Setting]:
        """Return the rules of a parameter of every expert; required without a default."""
        return {
            expert: tuple(
                self._resolve(
                    name,
                    self._levels(part, sources[number]),
                    default,
                    f"{part.key}, {sources[number].model}",
                )
                for part, sources in zip(self.configuration.slices, self.sources, strict=True)
            )
            for number, expert in enumerate(self.experts)
        }

    def number(self, name: str, default: float) -> float:
        """Return a number that does not vary between tensors."""
        return self._constant(name, self.shared(name, default), default)

    def fractions(self, name: str, default: float) -> dict[str, Setting]:
        """Return the rules of a fraction of every expert."""
        settings = self.by_expert(name, default)
        return {expert: self.as_fraction(name, setting) for expert, setting in settings.items()}

    def as_fraction(self, name: str, setting: Setting) -> Setting:
        """Return fractions up to 1, which mergekit takes for all that is larger."""
        if any(value <= 0 for rules in setting for rule in rules for value in rule.values):
            self.refuse(name, "expected values above 0; skip a model by weight: 0")
        return tuple(change(rules, lambda value: min(value, 1.0)) for rules in setting)

    def switch(self, name: str, *, default: bool) -> bool:
        """Return a truth value that does not vary between tensors."""
        rules = self.switch_rules(name, default=default)
        return bool(self._constant(name, (rules,), float(default)))

    def switch_rules(self, name: str, *, default: bool) -> Rules:
        """Return the rules of a truth value, 0 or 1, which may vary by filter."""
        first, *others = (
            self._resolve(
                name,
                [part.parameters, self.configuration.parameters],
                float(default),
                part.key,
                convert=read_switch,
            )
            for part in self.configuration.slices
        )
        if any(rules != first for rules in others):
            self.refuse(name, "varies between slices, and the method has one value for all")
        if any(len({*rule.values}) > 1 for rule in first):
            self.refuse(name, "expected true or false, got a list of both")
        return first

    def refuse(self, name: str, reason: str) -> None:
        """Record that the recipe cannot express a parameter."""
        self.findings.refuse(f"{self.configuration.prefix}parameters.{name}", reason)

    def warn(self, name: str, reason: str) -> None:
        """Record that a parameter has no effect."""
        self.findings.warn(f"{self.configuration.prefix}parameters.{name}", reason)

    def _constant(self, name: str, setting: Setting, default: float) -> float:
        values = {constant(rules) for rules in setting}
        if len(values) == 1 and (value := values.pop()) is not None:
            return value
        self.refuse(name, "varies between tensors, and the method has one value for all")
        return default

    def _levels(self, part: Slice, source: Source) -> list[Mapping[str, Any]]:
        return [source.parameters, part.parameters, self.configuration.parameters]

    def _resolve(
        self,
        name: str,
        levels: Sequence[Mapping[str, Any]],
        default: float | None,
        key: str,
        convert: Callable[[object], float] = read_number,
    ) -> Rules:
        settings = [level[name] for level in levels if name in level]
        try:
            rules = read_rules(settings, convert)
        except ValueError as error:
            self.refuse(name, str(error))
            return (Rule(None, (1.0 if default is None else default,)),)
        if not rules or rules[-1].filter is not None:
            if default is None:
                which = "missing for some tensors" if rules else "missing"
                self.findings.refuse(f"{self.configuration.prefix}{key}", f"{name} is {which}")
            rules.append(Rule(None, (1.0 if default is None else default,)))
        for rule in rules:
            self._check_rule(name, rule)
        return tuple(rules)

    def _check_rule(self, name: str, rule: Rule) -> None:
        """Record a filter that slices give another meaning."""
        if rule.filter is None or not self.configuration.has_ranges:
            return
        if any(map(str.isdigit, rule.filter.split("."))):
            self.refuse(name, f"the filter {rule.filter!r} has a layer number, which slices change")


def check_names(configuration: Configuration, method: Method, findings: ImportFindings) -> None:
    """Record parameters that the method does not have, or not where they are."""
    known = method.parameters
    levels = [("parameters", configuration.parameters, known)]
    for part in configuration.slices:
        levels.append((f"{part.key}.parameters", part.parameters, known))
        levels += [
            (f"parameters of {source.model}", source.parameters, method.of_models)
            for source in part.sources
        ]
    for where, parameters, usable in levels:
        for name in parameters:
            key = f"{configuration.prefix}{where}.{name}"
            if name in usable or name == "int8_mask":
                continue
            if name in known:
                findings.warn(key, "ignored; mergekit reads it for the whole merge or a slice")
            elif name in PARAMETERS:
                findings.warn(key, f"ignored: {configuration.method} has no such parameter")
            else:
                findings.report_unknown(key, PARAMETERS, "parameter")
