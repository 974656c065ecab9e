"""Statements of an adapter's configuration that its tensors, or the pool's base, contradict."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fusion_core.weights.aligning._difference import Difference, excerpts
from fusion_core.weights.aligning._origin import compare_base, compare_revision
from fusion_core.weights.reading._lora_config import KNOWN_OPTIONS
from fusion_core.weights.reading.assets import CONFIG
from fusion_core.weights.reading.location import ADAPTER_CONFIG
from fusion_core.weights.reading.lora import LoraSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fusion_core.weights.aligning._models import Model, Models
    from fusion_core.weights.source import WeightSource

_LONGEST_KEY = 80
#: Classes of models whose output head may be the matrix of their embeddings.
_GENERATES = re.compile(r"LMHead|For(CausalLM|ConditionalGeneration|MaskedLM|PreTraining)")
_INPUT = frozenset(("embed_tokens", "wte", "word_embeddings", "shared", "tok_embeddings"))
_OUTPUT = frozenset(("lm_head", "embed_out", "output_projection"))


def compare_bases(models: Models) -> Iterator[Difference]:
    """Compare the models and revisions that adapters name with the base."""
    if models.base is None:
        return
    config = models.by_name["base"].config(CONFIG) if "base" in models.by_name else {}
    for model in _adapters(models):
        adapter = model.config(ADAPTER_CONFIG)
        yield from compare_base(adapter, model.name, models.base, config)
        yield from compare_revision(adapter, model.name, models.base)


def unknown_options(models: Models) -> Iterator[Difference]:
    """Name unknown options that are switched on.

    A flag or a section may stand for another formula. A number or a text is only a warning, because
    PEFT also writes the defaults of what is switched off.
    """
    for model in _adapters(models):
        for key, value in model.config(ADAPTER_CONFIG).items():
            if value and key not in KNOWN_OPTIONS:
                excerpt, _ = excerpts(value, value)
                problem = f"unknown option {excerpt}: it may change what the adapter computes"
                subject = f"{ADAPTER_CONFIG} {key[:_LONGEST_KEY]}"
                is_switch = value is True or isinstance(value, dict | list)
                yield Difference(subject, model.name, problem, is_serious=is_switch)


def missing_modules(models: Models) -> Iterator[Difference]:
    """Name modules that an adapter trained as a whole but does not contain.

    PEFT may list several names of which a model has one. So a name that the base lacks as well
    counts only if the adapter contains none of the listed modules.
    """
    for model in _adapters(models):
        listed = model.config(ADAPTER_CONFIG).get("modules_to_save")
        modules = {str(name) for name in listed} if isinstance(listed, list) else set()
        adapter = _lora(model.source)
        if adapter is None or not modules:
            continue
        missing = {name for name in modules if not _has_module(adapter.whole, name)}
        in_base = {} if models.base is None else models.base.infos
        for name in sorted(missing):
            is_in_base = _has_module(in_base, name)
            if is_in_base or missing == modules:
                subject = f"{ADAPTER_CONFIG} modules_to_save"
                problem = f"names {name!r}, but the adapter has no tensor of this module"
                yield Difference(subject, model.name, problem, is_serious=is_in_base)


def partly_changed_ties(models: Models) -> Iterator[Difference]:
    """Name adapters that change only one use of a tied matrix: a merge changes both."""
    base = models.by_name.get("base")
    if base is None or not _ties_embeddings(base):
        return
    for model in _adapters(models):
        adapter = _lora(model.source)
        if adapter is None or adapter.tied:
            continue
        names = {*adapter.factored, *adapter.whole}
        changed_inputs = [name for name in names if _has_part(name, _INPUT)]
        changed_outputs = [name for name in names if _has_part(name, _OUTPUT)]
        if bool(changed_inputs) != bool(changed_outputs):
            other = "output head is" if changed_inputs else "input embeddings are"
            problem = (
                f"changes only {min(changed_inputs or changed_outputs)}; the {other} the same "
                "matrix, so a merge changes both"
            )
            yield Difference(ADAPTER_CONFIG, model.name, problem, is_serious=False)


def _adapters(models: Models) -> Iterator[Model]:
    return (model for model in models.by_name.values() if ADAPTER_CONFIG in model.files)


def _lora(source: WeightSource) -> LoraSource | None:
    """Return the adapter that a source reads from, through sources that rename it."""
    if isinstance(source, LoraSource):
        return source
    return next(filter(None, map(_lora, source.sources)), None)


def _ties_embeddings(base: Model) -> bool:
    """Tell whether a model has one matrix for its embeddings and its output head."""
    config = base.config(CONFIG)
    stated = config.get("tie_word_embeddings")
    if isinstance(stated, bool):
        return stated
    classes = config.get("architectures")
    generates = isinstance(classes, list) and any(map(_GENERATES.search, map(str, classes)))
    return generates and not any(_has_part(name, _OUTPUT) for name in base.source.infos)


def _has_module(tensors: Iterable[str], module: str) -> bool:
    return any(f".{module}." in f".{name}" for name in tensors)


def _has_part(name: str, parts: frozenset[str]) -> bool:
    return not parts.isdisjoint(name.split("."))
