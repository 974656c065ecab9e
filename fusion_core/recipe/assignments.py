"""Options of a recipe changed one by one: `section.option=value`, as flags do it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ruamel.yaml.error import MarkedYAMLError

from fusion_core.errors import RecipeError
from fusion_core.recipe.text import from_name, load_yaml, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

_CLOSING = {"[": "]", "{": "}"}
#: How YAML spells a value that is none.
_NOTHING = {"", "~", "null", "Null", "NULL"}


def override(recipe: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return the recipe with `section.option=value` assignments applied; values are YAML."""
    for assignment in assignments:
        dotted, separator, text = assignment.partition("=")
        if not separator or not all(dotted.split(".")):
            raise RecipeError(
                f"--set {assignment!r} is not an assignment",
                hint="Write --set algorithm.density=0.2.",
            )
        value = _value_of(text, dotted)
        recipe = assign(recipe, dotted.split("."), value, origin=f"--set {assignment!r}")
    return recipe


def _value_of(text: str, dotted: str) -> Any:  # noqa: ANN401 - YAML holds anything
    """Read the value of an assignment; text that YAML takes for more than text has to be quoted.

    Else `#a`, `&a` and `a #b` would be taken for less than they are without a word.
    """
    quoted = shlex.quote(f"{dotted}={_quoted(text)}")
    hint = f"If text is meant, quote it for YAML and for the shell: --set {quoted}"
    if text[:1] in _CLOSING and not text.endswith(_CLOSING[text[0]]):
        hint = f"{_CLOSING[text[0]]!r} is missing. {hint}"
    try:
        value = load_yaml(text, origin=f"--set {dotted}")
    except RecipeError as error:
        if not isinstance(error.__cause__, MarkedYAMLError):
            raise
        problem = str(error.__cause__.problem).partition("\n")[0]
        why = "" if "alias" in problem else f": {problem}"
        message = f"--set {dotted}: {shown(text)} cannot be read as YAML{why}"
        raise RecipeError(message, hint=hint) from error
    plain = text.strip()
    means_itself = value == plain if isinstance(value, str) else plain in _NOTHING
    if isinstance(value, str | None) and not means_itself and plain[:1] not in {'"', "'"}:
        raise RecipeError(f"--set {dotted}: {shown(text)} would be {shown(value)}", hint=hint)
    return value


def _quoted(text: str) -> str:
    """Quote text for YAML; of a list, each of its texts."""
    if text.startswith("[") and text.endswith("]"):
        return f"[{', '.join(_quoted(item.strip()) for item in text[1:-1].split(','))}]"
    is_quoted = len(text) > 1 and text[0] in "'\"" and text[0] == text[-1]
    return text if is_quoted else json.dumps(text, ensure_ascii=False)


def assign(
    recipe: Mapping[str, Any], path: Sequence[str], value: object, *, origin: str
) -> dict[str, Any]:
    """Return the recipe with one option set; `origin` names the flag in errors.

    Raises `RecipeError` where the recipe holds something that has no options on the way.
    """
    section, *rest = path
    stages = recipe.get(section) if section == "algorithm" and rest else None
    try:
        if isinstance(stages, list):
            return {**recipe, section: _assign_to_stage(stages, rest, value)}
        return _assign(recipe, path, value)
    except TypeError as error:
        raise RecipeError(f"{origin}: {error}") from error


def _assign(node: object, path: Sequence[str], value: object) -> dict[str, Any]:
    head, *rest = path
    branch = from_name(node)  # `algorithm: ties` may be given options too
    if not isinstance(branch, Mapping):
        raise TypeError(f"{shown(node)} has no options, so none is {head!r}")
    branch = dict(branch)
    branch[head] = _assign(branch.get(head), rest, value) if rest else value
    return branch


def _assign_to_stage(stages: Sequence[Any], path: Sequence[str], value: object) -> list[Any]:
    """Return a pipeline with an option of a stage set; raises `TypeError` unless it names one."""
    spelled: list[Any] = [from_name(stage) for stage in stages]
    names = [str(each.get("name")) if isinstance(each, Mapping) else "?" for each in spelled]
    name, *rest = path
    if names.count(name) != 1:
        count = "no stage" if name not in names else "more than one stage"
        raise TypeError(
            f"{count} of {', '.join(names)} is called {name!r}; the stage is named first, as in "
            f"algorithm.{names[0]}.{name}"
        )
    number = names.index(name)
    changed = _assign(spelled[number], rest, value) if rest else value
    return [*stages[:number], changed, *stages[number + 1 :]]
