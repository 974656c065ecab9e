"""Parts of models: renamed tensors, and models that lack a part of another model."""

from __future__ import annotations

from collections import defaultdict
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from fusion_core.errors import AlignmentError, RecipeError
from fusion_core.weights import (
    AlignedSource,
    RenamedSource,
    differs_in_vocabulary,
    select_names,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from fusion_core.weights import TensorInfo, WeightSource

    Infos = Mapping[str, TensorInfo]

_LISTED = 3
#: The number of names from which prefixes are guessed. Every guess is tried on all names.
_SAMPLE = 16
#: Keys of a configuration that differ between a model and a part of another model.
_WHOLE_MODEL = "model_type", "architectures"


def rename_by_patterns(
    source: WeightSource, patterns: Mapping[str, str], option: str
) -> WeightSource:
    """Return a model whose tensors are renamed by patterns with one `*` each.

    The first matching pattern counts, and other tensors keep their names. Raises `RecipeError` for
    a pattern that matches nothing, and for two tensors with one new name.
    """
    for pattern, target in patterns.items():
        if pattern.count("*") != target.count("*") or pattern.count("*") > 1:
            raise RecipeError(
                f"{option}: expected at most one `*` in a pattern, and as many in the new name, "
                f"got {pattern!r}: {target!r}",
                hint='For example: {"model.*": "model.language_model.*"}',
            )
        select_names([pattern], source.infos, option)
    names: dict[str, str] = {}
    for name in source.infos:
        new = _rename(name, patterns)
        if new in names:
            raise RecipeError(
                f"{option}: the tensors {names[new]!r} and {name!r} both become {new!r}",
                hint="Change the patterns.",
            )
        names[new] = name
    return RenamedSource(source, names)


def _rename(name: str, patterns: Mapping[str, str]) -> str:
    for pattern, target in patterns.items():
        if fnmatchcase(name, pattern):
            before, star, after = pattern.partition("*")
            middle = name[len(before) : len(name) - len(after)] if star else ""
            return target.replace("*", middle)
    return name


def complete_models(
    models: Mapping[str, WeightSource], whole: str
) -> tuple[dict[str, WeightSource], list[str]]:
    """Return models with the tensors that all of them but `whole` lack, and these tensors' names.

    The others' tensors get their names in `whole`, which may have another prefix. A tensor that
    only some of the models lack stays missing, so alignment reports it. Raises `AlignmentError` for
    tensors that `whole` lacks: nothing is dropped.
    """
    complete = models[whole]
    others = {
        name: RenamedSource(source, _find_names(complete, whole, source, name))
        for name, source in models.items()
        if name != whole
    }
    shared = {tensor for source in others.values() for tensor in source.infos}
    rest = [tensor for tensor in complete.infos if tensor not in shared]
    completed = {name: _complete(source, complete, shared) for name, source in others.items()}
    return {name: completed.get(name, complete) for name in models}, rest


def _complete(source: WeightSource, whole: WeightSource, shared: Collection[str]) -> WeightSource:
    wanted = {name: name for name in whole.infos if name in source.infos or name not in shared}
    return AlignedSource(source, RenamedSource(whole, wanted))


def _find_names(
    complete: WeightSource, whole: str, source: WeightSource, name: str
) -> dict[str, str]:
    """Map names in the whole model to those of all tensors of another model.

    Raises `AlignmentError` if no change of one prefix maps them all, or several do.
    """
    remedy = f'model_pool.map. For example: {{{name}: {{"model.*": "model.language_model.*"}}}}'
    mappings = _complete_mappings(complete.infos, source.infos)
    if len(mappings) == 1:
        return mappings[0]
    if mappings:
        first, second = min(pair for pair in zip(*mappings[:2], strict=True) if len(set(pair)) > 1)
        raise AlignmentError(
            f"model_pool.rest: {whole} has several parts like {name}: one with {first!r} and one "
            f"with {second!r}",
            hint=f"Name the part by {remedy}",
        )
    extra = [tensor for tensor in source.infos if tensor not in complete.infos] or [*source.infos]
    listed = ", ".join(extra[:_LISTED]) + (", ..." if len(extra) > _LISTED else "")
    raise AlignmentError(
        f"model_pool.rest: {whole} lacks tensors of {name}, or has them in other shapes: "
        f"{len(extra)}, among them {listed}",
        hint=f"If they have other names in {whole}, give {remedy}",
    )


def _complete_mappings(whole: Infos, part: Infos) -> list[dict[str, str]]:
    """Return all ways to find every tensor of a part in the whole model, up to one prefix.

    Most of the part's names have the prefix. If all names are found as they are, that is the only
    way.
    """
    mappings: list[dict[str, str]] = []
    for old, new in [("", ""), *_guess_prefixes(whole, part)]:
        if 2 * sum(name.startswith(old) for name in part) <= len(part):
            continue
        names: dict[str, str] = {}
        for name in part:
            renamed = new + name.removeprefix(old) if name.startswith(old) else name
            names[renamed if renamed in whole else name] = name
        fits = len(names) == len(part) and all(
            renamed in whole and _fits(whole[renamed], part[name])
            for renamed, name in names.items()
        )
        if fits and old == new:
            return [names]
        if fits and names not in mappings:
            mappings.append(names)
    return mappings


def _fits(one: TensorInfo, other: TensorInfo) -> bool:
    return one.shape == other.shape or differs_in_vocabulary(one, other)


def _guess_prefixes(whole: Infos, part: Infos) -> list[tuple[str, str]]:
    """Return pairs of prefixes that turn some name of a part into one of the whole model."""
    sample = [*part][:: max(1, len(part) // _SAMPLE)]
    endings: dict[str, set[str]] = defaultdict(set)
    for name in sample:
        for index in _starts(name):
            endings[name[index:]].add(name[:index])
    pairs: dict[tuple[str, str], None] = {}
    for name in whole:
        for index in _starts(name):
            pairs |= dict.fromkeys((old, name[:index]) for old in endings.get(name[index:], ()))
    return [*pairs]


def _starts(name: str) -> Iterator[int]:
    """Yield where a name begins, and where it goes on after a dot."""
    yield 0
    yield from (index + 1 for index, character in enumerate(name) if character == ".")


def describe_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration says of a model's language part, to compare parts of models."""
    part = config.get("text_config")
    fields = {**config, **part} if isinstance(part, dict) else config
    return {key: value for key, value in fields.items() if key not in _WHOLE_MODEL}
