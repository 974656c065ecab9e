"""Options of a recipe that flags set one by one: `section.option=value`."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ruamel.yaml.error import MarkedYAMLError

from fusion_core.errors import RecipeError
from fusion_core.recipe.text import format_value, load_yaml, spell_out

if TYPE_CHECKING:
    from collections.abc import Sequence

_PART = re.compile(r'"[^"]+"|[^."]+')
_PATH = re.compile(rf"(?:{_PART.pattern})(?:\.(?:{_PART.pattern}))*")
_CLOSING = {"[": "]", "{": "}"}
_YAML_NULLS = {"", "~", "null", "Null", "NULL"}


def override(recipe: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return the recipe after `section.option=value` assignments. Values are YAML."""
    for assignment in assignments:
        dotted, separator, text = assignment.partition("=")
        path = _split(dotted)
        if not separator or not all(path):
            example = f"{dotted}=VALUE" if all(path) else "algorithm.density=0.2"
            raise RecipeError(
                f"--set {assignment!r}: expected SECTION.OPTION=VALUE",
                hint=f"For example: --set {example}",
            )
        value = _parse_value(text, dotted)
        recipe = assign(recipe, path, value, origin=f"--set {assignment!r}")
    return recipe


def _split(dotted: str) -> list[str]:
    """Split a path at its dots; a name with dots is in double quotes."""
    if _PATH.fullmatch(dotted) is None:
        return dotted.split(".")
    return [part.strip('"') for part in _PART.findall(dotted)]


def _parse_value(text: str, dotted: str) -> Any:  # noqa: ANN401 - YAML holds anything
    """Parse the value of an assignment as YAML.

    YAML would silently read `#a`, `&a` and `a #b` as less than they are, so an unquoted text that
    does not stand for itself is an error.
    """
    quoted = shlex.quote(f"{dotted}={_quote(text)}")
    hint = f"If you mean text, quote it for YAML and for the shell: --set {quoted}"
    if text[:1] in _CLOSING and not text.endswith(_CLOSING[text[0]]):
        hint = f"Close the bracket with {_CLOSING[text[0]]!r}. {hint}"
    try:
        value = load_yaml(text, origin=f"--set {dotted}")
    except RecipeError as error:
        if not isinstance(error.__cause__, MarkedYAMLError):
            raise
        problem = str(error.__cause__.problem).partition("\n")[0]
        reason = "" if "alias" in problem else f": {problem}"
        message = f"--set {dotted}: {format_value(text)} is invalid YAML{reason}"
        raise RecipeError(message, hint=hint) from error
    plain = text.strip()
    is_literal = value == plain if isinstance(value, str) else plain in _YAML_NULLS
    if isinstance(value, str | None) and not is_literal and plain[:1] not in {'"', "'"}:
        raise RecipeError(
            f"--set {dotted}: YAML reads {format_value(text)} as {format_value(value)}", hint=hint
        )
    return value


def _quote(text: str) -> str:
    """Quote a text for YAML, or each text of a list."""
    if text.startswith("[") and text.endswith("]"):
        return f"[{', '.join(_quote(item.strip()) for item in text[1:-1].split(','))}]"
    is_quoted = len(text) > 1 and text[0] in "'\"" and text[0] == text[-1]
    return text if is_quoted else json.dumps(text, ensure_ascii=False)


def assign(
    recipe: Mapping[str, Any], path: Sequence[str], value: object, *, origin: str
) -> dict[str, Any]:
    """Return the recipe with one option set. `origin` names the flag in errors.

    Raises `RecipeError` if a value on the path has no options.
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
    key, *rest = path
    branch = spell_out(node)  # `algorithm: ties` may be given options too
    if not isinstance(branch, Mapping):
        raise TypeError(
            f"cannot set option {key!r}: {format_value(node)} is not a mapping of options"
        )
    branch = dict(branch)
    branch[key] = _assign(branch.get(key), rest, value) if rest else value
    return branch


def _assign_to_stage(stages: Sequence[Any], path: Sequence[str], value: object) -> list[Any]:
    """Return a pipeline with an option of one stage set. `TypeError` for an unclear stage."""
    spelled: list[Any] = [spell_out(stage) for stage in stages]
    names = [str(stage.get("name")) if isinstance(stage, Mapping) else "?" for stage in spelled]
    name, *rest = path
    if name not in names:
        raise TypeError(
            f"the pipeline {', '.join(names)} has no stage {name!r}: put the stage's name first, "
            f"as in algorithm.{names[0]}.{name}"
        )
    if names.count(name) > 1:
        raise TypeError(
            f"the pipeline {', '.join(names)} has more than one stage {name!r}: write the stages "
            "as a list in a recipe, each with its options"
        )
    number = names.index(name)
    changed = _assign(spelled[number], rest, value) if rest else value
    return [*stages[:number], changed, *stages[number + 1 :]]
