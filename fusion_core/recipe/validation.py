"""Validation of values from recipes and flags, and the wording of its errors.

This module knows pydantic, but no recipe. Classes of options derive from `Options`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from fusion_core.errors import RecipeError
from fusion_core.formatting import similar_names
from fusion_core.recipe.text import format_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic_core import ErrorDetails

STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

#: Keys of a pydantic schema that hold no schemas of values.
_OTHER_KEYS = frozenset({"metadata", "serialization", "config", "cls", "expected", "default"})

#: The words of errors for values that are not numbers.
_OTHER_KINDS: dict[Any, str] = {
    bool: "a truth value",
    str | bytes: "text",
    list | tuple: "a list",
    Mapping: "a mapping",
}

ModelT = TypeVar("ModelT", bound=BaseModel)


def _refuse_text(value: object, expected: str) -> object:
    for kind, got in _OTHER_KINDS.items():
        if isinstance(value, kind):
            context = {"expected": expected, "got": got}
            raise PydanticCustomError("number", "expected {expected}, got {got}", context)
    return value


_CHECKS = {
    "int": partial(_refuse_text, expected="an integer"),
    "float": partial(_refuse_text, expected="a number"),
}


def _make_strict(schema: Any) -> Any:  # noqa: ANN401 - a node of pydantic's schema, or its content
    """Return a schema in which numbers and truth values take no text."""
    if isinstance(schema, list | tuple):
        return type(schema)(_make_strict(item) for item in schema)
    if not isinstance(schema, dict) or schema.get("type") == "model":  # a model is strict itself
        return schema
    match schema.get("type"):
        case "bool":
            return {**schema, "strict": True}
        case "int" | "float" as kind:
            return core_schema.no_info_before_validator_function(_CHECKS[kind], schema)
        case "function-before" if schema["function"]["function"] in _CHECKS.values():
            return schema
        case _:
            return {
                key: value if key in _OTHER_KEYS else _make_strict(value)
                for key, value in schema.items()
            }


if TYPE_CHECKING:  # type checkers then take pydantic's metaclass, which knows the options' types
    _OptionsType = type
else:

    class _OptionsType(type(BaseModel)):
        def __call__(cls, *arguments, **values):  # noqa: ANN002, ANN003, ANN204
            """Raise the same errors for options given from Python as for those of a recipe."""
            try:
                return super().__call__(*arguments, **values)
            except ValidationError as error:
                raise _recipe_error(error, cls) from error


class Options(BaseModel, metaclass=_OptionsType):
    """Frozen options that refuse unknown names, and anything but a number where one is expected.

    YAML tells numbers and truth values from text, so `"0.5"` and `"yes"` are mistakes. Pydantic
    converts everything else: lists to tuples, names to members of an enumeration, text to paths.
    """

    model_config = STRICT

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:  # noqa: ANN401 - the class statement's
        """Raise `TypeError` for an option with an alias: an option has one name in all files."""
        super().__pydantic_init_subclass__(**options)
        for name, field in cls.model_fields.items():
            if field.validation_alias or field.serialization_alias:
                raise TypeError(
                    f"the option {name!r} of {cls.__name__} has an alias: give the field the name "
                    "that recipes use"
                )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401 - pydantic's type
        """Make every number and truth value strict, in nested lists and mappings too."""
        schema = handler(source)
        resolved: dict[str, Any] = handler.resolve_ref_schema(schema)  # type: ignore[assignment]
        while resolved["type"].startswith("function-"):  # validators of the whole class
            resolved = resolved["schema"]
        resolved |= {
            key: value if key in _OTHER_KEYS else _make_strict(value)
            for key, value in resolved.items()
        }
        return schema


def validate(  # noqa: PLR0913 - the values to validate, and the wording of errors
    model: type[ModelT],
    values: object,
    *,
    prefix: str = "",
    hint: str | None = None,
    suggestions: Iterable[str] = (),
    context: Any = None,  # noqa: ANN401 - for the validators
) -> ModelT:
    """Validate values against a model. Raises `RecipeError` with one line per problem.

    `suggestions` are further names to suggest for an unknown option, with the section in front of
    an option of another section: `algorithm.density`. The names are read only after an error.
    """
    try:
        return model.model_validate(values, context=context)
    except ValidationError as error:
        raise _recipe_error(error, model, prefix=prefix, hint=hint, more=suggestions) from error


def _recipe_error(
    error: ValidationError,
    model: type[BaseModel],
    *,
    prefix: str = "",
    hint: str | None = None,
    more: Iterable[str] = (),
) -> RecipeError:
    known = [*model.model_fields, *more]
    lines = [_describe(details, model, prefix, known) for details in error.errors()]
    return RecipeError("\n".join(dict.fromkeys(lines)), hint=hint)


def _describe(
    details: ErrorDetails, model: type[BaseModel], prefix: str, known: Sequence[str]
) -> str:
    # Parts with brackets ("function-before[...]") are pydantic's names of a union's branches.
    path = [str(part) for part in details["loc"] if "[" not in str(part)]
    option = ".".join([prefix, *path] if prefix else path) or "recipe"
    is_key = details["loc"][-1:] == ("[key]",)
    match details["type"]:
        case "extra_forbidden":
            return f"{option}: unknown option{_suggest(details['loc'], model, known)}"
        case "missing":
            return f"{option}: required"
        case "model_type":
            problem = "expected a mapping of options"
        case "byte_size":
            problem = "expected a size such as 5GB"
        case "too_short":
            fewest = details["ctx"]["min_length"]
            problem = f"expected at least {fewest} {'entry' if fewest == 1 else 'entries'}"
        case "bool_type":
            problem = "expected true or false"
        case kind if kind == "invalid_key" or is_key:
            problem = f"expected text as a name: put it in quotes, '{details['input']}'"
        case _:
            problem = _reword(details["msg"])
    return f"{option} = {format_value(details['input'])}: {problem}"


def _reword(message: str) -> str:
    """Turn pydantic's `Input should be a valid number` into `expected a number`."""
    message = message.removeprefix("Value error, ")
    wanted = message.removeprefix("Input should be ").replace("a valid i", "an i")
    wanted = (
        wanted.replace("a valid ", "a ").replace("dictionary", "mapping").replace("tuple", "list")
    )
    if wanted.startswith(("less", "greater")):
        wanted = f"a value {wanted}"
    return f"expected {wanted}" if message.startswith("Input should be ") else message


def option_models(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - any type
    """Return the classes of options in a type, such as those of a mapping's values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in option_models(part)]


def _suggest(location: tuple[int | str, ...], model: type[BaseModel], known: Sequence[str]) -> str:
    """Return the ending of an error about an unknown option: what was meant, or what is known."""
    if len(location) > 1 and location[0] in model.model_fields:
        nested = option_models(model.model_fields[str(location[0])].annotation)
        branch = [inner for inner in nested if f"[{inner.__name__}]" in location] or nested
        known = [name for inner in branch for name in inner.model_fields] or known
    name = str(location[-1])
    full_names = {full.rpartition(".")[2]: full for full in reversed(known)}  # the first one wins
    close = [name] if name in full_names else similar_names(name, full_names)
    if close:
        return f"; did you mean {full_names[close[0]]}?"
    return f"; known: {', '.join(option for option in known if '.' not in option) or 'none'}"
