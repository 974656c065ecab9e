"""What an adapter's configuration says that its tensors, or the pool's base, do not bear out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fusion_core.weights.aligning._comparison import excerpts
from fusion_core.weights.aligning._difference import Doubt
from fusion_core.weights.aligning._origin import other_base, other_revision
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


def bases(models: Models) -> Iterator[Doubt]:
    """Compare the models and revisions that adapters name with the base."""
    if models.base is None:
        return
    config = models.by_name["base"].config(CONFIG) if "base" in models.by_name else {}
    for model in _adapters(models):
        adapter = model.config(ADAPTER_CONFIG)
        yield from other_base(adapter, model.name, models.base, config)
        yield from other_revision(adapter, model.name, models.base)


def unknown_options(models: Models) -> Iterator[Doubt]:
    """Name options that are switched on and that nothing here knows.

    A flag or a section may stand for another formula; a number or a name alone only warns, because
    PEFT writes the defaults of what is switched off, too.
    """
    for model in _adapters(models):
        for key, value in model.config(ADAPTER_CONFIG).items():
            if value and key not in KNOWN_OPTIONS:
                shown, _ = excerpts(value, value)
                problem = f"unknown option {shown}: it may change what the adapter computes"
                is_switch = value is True or isinstance(value, dict | list)
                yield Doubt(
                    f"{ADAPTER_CONFIG} {key[:_LONGEST_KEY]}", model.name, problem, is_switch
                )


def missing_modules(models: Models) -> Iterator[Doubt]:
    """Name modules that an adapter has trained whole and does not hold.

    PEFT lists several names of which a model has one, so one that the base lacks, too, counts only
    where the adapter holds none of them.
    """
    for model in _adapters(models):
        listed = model.config(ADAPTER_CONFIG).get("modules_to_save")
        named = [str(name) for name in listed] if isinstance(listed, list) else []
        adapter = _lora(model.source)
        if adapter is None or not named:
            continue
        held = {name for name in named if _has_module(adapter.whole, name)}
        in_base = {} if models.base is None else models.base.infos
        for name in sorted({*named} - held):
            is_in_base = _has_module(in_base, name)
            if is_in_base or not held:
                problem = f"names {name!r}, and the adapter holds no tensor of it"
                yield Doubt(f"{ADAPTER_CONFIG} modules_to_save", model.name, problem, is_in_base)


def tied_embeddings(models: Models) -> Iterator[Doubt]:
    """Name adapters that change one of two tied matrices: a merge changes both."""
    base = models.by_name.get("base")
    if base is None or not _ties_embeddings(base):
        return
    for model in _adapters(models):
        adapter = _lora(model.source)
        touched = {*adapter.factored, *adapter.whole} if adapter is not None else ()
        changed = {name for name in touched if _has_part(name, _INPUT | _OUTPUT)}
        sides = {_has_part(name, _OUTPUT) for name in changed}
        if len(sides) == 1 and not (adapter is not None and adapter.tied):
            other = "the input embeddings" if sides == {True} else "the output head"
            problem = f"changes {min(changed)} alone; a merge changes {other}, too, which is tied"
            yield Doubt(ADAPTER_CONFIG, model.name, problem, serious=False)


def _adapters(models: Models) -> Iterator[Model]:
    return (model for model in models.by_name.values() if ADAPTER_CONFIG in model.files)


def _lora(source: WeightSource) -> LoraSource | None:
    """Return the adapter that a source reads from, whatever renames it."""
    if isinstance(source, LoraSource):
        return source
    return next(filter(None, map(_lora, source.sources)), None)


def _ties_embeddings(base: Model) -> bool:
    """Tell whether a model has one matrix for its embeddings and its output head."""
    config = base.config(CONFIG)
    stated = config.get("tie_word_embeddings")
    if isinstance(stated, bool):
        return stated
    named = config.get("architectures")
    generates = isinstance(named, list) and any(map(_GENERATES.search, map(str, named)))
    return generates and not any(_has_part(name, _OUTPUT) for name in base.source.infos)


def _has_module(tensors: Iterable[str], module: str) -> bool:
    return any(f".{module}." in f".{name}" for name in tensors)


def _has_part(name: str, parts: frozenset[str]) -> bool:
    return not parts.isdisjoint(name.split("."))
