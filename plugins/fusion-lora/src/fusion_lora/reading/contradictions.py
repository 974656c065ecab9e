"""Statements of an adapter's configuration that its tensors, or its base, contradict."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING

from fusion_core.weights import Contradiction
from fusion_lora.reading.config import ADAPTER_CONFIG, KNOWN_OPTIONS, list_saved
from fusion_lora.reading.factors import is_input, is_inside, is_output
from fusion_lora.reading.origin import compare_base, compare_revision

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
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
    modules = {*list_saved(config)}
    stored = {*adapter.whole, *adapter.lone_heads}
    missing = {name for name in modules if not _has_module(stored, name)}
    for name in sorted(missing):
        is_in_base = _has_module(base.infos, name)
        if is_in_base or missing == modules:
            problem = f"names {name!r}, but the adapter has no tensor of this module"
            yield Contradiction(f"{ADAPTER_CONFIG} modules_to_save", problem, is_serious=is_in_base)


def _find_half_changed_ties(
    adapter: LoraSource, base: WeightSource, base_config: Mapping[str, Any]
) -> Iterator[Contradiction]:
    """Say that an adapter changes one use of a tied matrix, and what a merge and PEFT's change.

    A base may store the matrix once or twice. PEFT's merge adds factors to the one matrix of a live
    model, and replaces only the listed module by one that is stored whole. A lone head of a base
    that does not tie it changes nothing that the base has, which is serious.
    """
    ties = _ties_embeddings(base, base_config)
    if adapter.lone_heads and base_config and not ties:
        head = min(adapter.lone_heads)
        problem = f"changes {head}, but the base does not store it and does not tie its embeddings"
        yield Contradiction(ADAPTER_CONFIG, problem, is_serious=True)
    if adapter.tied or not ties:
        return
    heads = {embeddings: head for head, embeddings in adapter.lone_heads.items()}
    changed = {heads.get(name, name): name for name in adapter.factored | adapter.whole}
    changed_inputs, changed_outputs = (
        [name for name in changed if is_use(name)] for is_use in (is_input, is_output)
    )
    if bool(changed_inputs) == bool(changed_outputs):
        return
    name = min(changed_inputs or changed_outputs)
    other = "output head is" if changed_inputs else "input embeddings are"
    is_twice = any(map(is_input, base.infos)) and any(map(is_output, base.infos))
    merge_changes = "this copy alone, because the base stores both" if is_twice else "both"
    peft_changes = "both" if changed[name] in adapter.factored else "this one alone"
    problem = (
        f"changes only {name}; the {other} the same matrix. A merge changes {merge_changes}; "
        f"PEFT's merge_and_unload changes {peft_changes}"
    )
    yield Contradiction(ADAPTER_CONFIG, problem, is_serious=False)


def _ties_embeddings(base: WeightSource, config: Mapping[str, Any]) -> bool:
    """Tell whether a model has one matrix for its embeddings and its output head."""
    classes = config.get("architectures")
    generates = isinstance(classes, list) and any(map(_GENERATES.search, map(str, classes)))
    stores_head = any(map(is_output, base.infos))
    stated = config.get("tie_word_embeddings")
    if isinstance(stated, bool):  # by a classifier too, which has no such head
        return stated and (generates or stores_head or not classes)
    return generates and not stores_head


def _has_module(tensors: Iterable[str], module: str) -> bool:
    return any(is_inside(name, [module]) for name in tensors)
