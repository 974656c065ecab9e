"""Statements of an adapter's configuration that its tensors, or its base, contradict."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING

from fusion_core.weights import Contradiction
from fusion_lora.reading.config import ADAPTER_CONFIG, KNOWN_OPTIONS
from fusion_lora.reading.factors import INPUTS, OUTPUTS
from fusion_lora.reading.origin import compare_base, compare_revision

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from fusion_core import WeightSource
    from fusion_lora.reading.source import LoraSource

_LONGEST_KEY, _LONGEST_VALUE = 80, 60
#: Classes of models whose output head may be the matrix of their embeddings.
_GENERATES = re.compile(r"LMHead|For(CausalLM|ConditionalGeneration|MaskedLM|PreTraining)")


def find_contradictions(
    adapter: LoraSource,
    config: Mapping[str, Any],
    base: WeightSource,
    base_config: Mapping[str, Any],
) -> Iterator[Contradiction]:
    """Yield what the configuration `config` of an adapter says and something else contradicts."""
    return chain(
        compare_base(config, base, base_config),
        compare_revision(config, base),
        _find_unknown_options(config),
        _find_missing_modules(adapter, config, base),
        _find_half_changed_ties(adapter, base, base_config),
    )


def _find_unknown_options(config: Mapping[str, Any]) -> Iterator[Contradiction]:
    """Name unknown options that are switched on, which may change what the adapter computes.

    A flag or a section may stand for another formula. A number or a text is only a warning, because
    PEFT also writes the defaults of what is switched off.
    """
    for key, value in config.items():
        if value and key not in KNOWN_OPTIONS:
            text = repr(value)
            excerpt = text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
            problem = f"unknown option {excerpt}: it may change what the adapter computes"
            is_switch = value is True or isinstance(value, dict | list)
            yield Contradiction(
                f"{ADAPTER_CONFIG} {key[:_LONGEST_KEY]}", problem, is_serious=is_switch
            )


def _find_missing_modules(
    adapter: LoraSource, config: Mapping[str, Any], base: WeightSource
) -> Iterator[Contradiction]:
    """Name modules that an adapter trained as a whole but does not contain.

    PEFT may list several names of which a model has one. So a name that the base lacks as well
    counts only if the adapter contains none of the listed modules.
    """
    listed = config.get("modules_to_save")
    modules = {str(name) for name in listed} if isinstance(listed, list) else set()
    missing = {name for name in modules if not _has_module(adapter.whole, name)}
    for name in sorted(missing):
        is_in_base = _has_module(base.infos, name)
        if is_in_base or missing == modules:
            problem = f"names {name!r}, but the adapter has no tensor of this module"
            yield Contradiction(f"{ADAPTER_CONFIG} modules_to_save", problem, is_serious=is_in_base)


def _find_half_changed_ties(
    adapter: LoraSource, base: WeightSource, base_config: Mapping[str, Any]
) -> Iterator[Contradiction]:
    """Say that an adapter changes one use of a tied matrix, if so: a merge changes both."""
    if adapter.tied or not _ties_embeddings(base, base_config):
        return
    names = adapter.factored | adapter.whole
    changed_inputs = [name for name in names if _has_part(name, INPUTS)]
    changed_outputs = [name for name in names if _has_part(name, OUTPUTS)]
    if bool(changed_inputs) != bool(changed_outputs):
        other = "output head is" if changed_inputs else "input embeddings are"
        problem = (
            f"changes only {min(changed_inputs or changed_outputs)}; the {other} the same "
            "matrix, so a merge changes both"
        )
        yield Contradiction(ADAPTER_CONFIG, problem, is_serious=False)


def _ties_embeddings(base: WeightSource, config: Mapping[str, Any]) -> bool:
    """Tell whether a model has one matrix for its embeddings and its output head."""
    stated = config.get("tie_word_embeddings")
    if isinstance(stated, bool):
        return stated
    classes = config.get("architectures")
    generates = isinstance(classes, list) and any(map(_GENERATES.search, map(str, classes)))
    return generates and not any(_has_part(name, OUTPUTS) for name in base.infos)


def _has_module(tensors: Iterable[str], module: str) -> bool:
    return any(f".{module}." in f".{name}" for name in tensors)


def _has_part(name: str, parts: Sequence[str]) -> bool:
    return not {*parts}.isdisjoint(name.split("."))
