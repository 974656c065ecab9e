"""Parts of models: routers by name, renamed tensors, and models that lack a part of another."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from fusion_core.contracts.treatments import Treatment
from fusion_core.errors import AlignmentError, RecipeError
from fusion_core.recipe.patterns import select_names
from fusion_core.weights import AlignedSource, RenamedSource, match_names

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from fusion_core.weights import WeightSource

_LISTED = 3
#: The last part of the name of a bias that DeepSeek and others add to a router's scores.
_SCORE_BIAS = "e_score_correction_bias"


def find_routers(names: Collection[str]) -> list[str]:
    """Return the tensors that choose the experts of a mixture.

    They are those of a module `router`, of a module `gate` next to `experts`, and biases of scores.
    """
    mixtures = {name.rpartition("experts.")[0] for name in names if ".experts." in f".{name}"}
    gates = tuple(f"{mixture}gate." for mixture in mixtures)
    return [
        name
        for name in names
        if "router" in name.split(".")[:-1]
        or name.endswith(_SCORE_BIAS)
        or (gates and name.startswith(gates))
    ]


def treat_routers(router: str, names: Collection[str], *, has_base: bool) -> dict[str, Treatment]:
    """Return the treatment of routers under the option `router`.

    Raises `RecipeError` if the models have no routers, or no base that routers could come from.
    """
    if router == "merge":
        return {}
    if router == "base" and not has_base:
        raise RecipeError(
            "model_pool.router: base needs a base, and the model pool has none",
            hint="Name the base, or use --set model_pool.router=average.",
        )
    routers = find_routers(names)
    if not routers:
        raise RecipeError(
            f"model_pool.router: {router} found no router: the models are no mixtures, or name "
            "their routers neither `router` nor `gate` next to `experts`",
            hint="Leave router out, and select tensors by patterns: algorithm.skip.",
        )
    if router == "base":
        return dict.fromkeys(routers, Treatment("copy", "copied from base (router: base)"))
    return dict.fromkeys(routers, Treatment("average", "averaged (router: average)"))


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

    A tensor that only some of the models lack stays missing, so alignment reports it. Raises
    `AlignmentError` for tensors that `whole` lacks: nothing is dropped.
    """
    complete = models[whole]
    others: dict[str, WeightSource] = {}
    for name, source in models.items():
        if name == whole:
            continue
        names = match_names(complete.infos, source.infos)
        extra = [tensor for tensor in source.infos if tensor not in set(names.values())]
        if extra:
            listed = ", ".join(extra[:_LISTED]) + (", ..." if len(extra) > _LISTED else "")
            raise AlignmentError(
                f"model_pool.rest: {whole} lacks tensors of {name}: {len(extra)}, among them "
                f"{listed}",
                hint=f"If they have other names in {whole}, give model_pool.map. For example: "
                f'{{{name}: {{"model.*": "model.language_model.*"}}}}',
            )
        others[name] = RenamedSource(source, names)
    shared = {tensor for source in others.values() for tensor in source.infos}
    rest = [tensor for tensor in complete.infos if tensor not in shared]
    if len(rest) == len(complete.infos):
        raise AlignmentError(
            f"model_pool.rest: {whole} shares no tensor name with the other models",
            hint="Give model_pool.map, which renames tensors by patterns.",
        )
    completed = {name: _complete(source, complete, rest) for name, source in others.items()}
    return {name: completed.get(name, complete) for name in models}, rest


def _complete(source: WeightSource, whole: WeightSource, rest: Collection[str]) -> WeightSource:
    wanted = {name: name for name in whole.infos if name in source.infos or name in rest}
    return AlignedSource(source, RenamedSource(whole, wanted))
