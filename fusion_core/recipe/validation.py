"""How values from recipes and flags are validated, and how what is wrong with them is said.

It knows pydantic, and no recipe: models of options are made of what is here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from fusion_core.errors import RecipeError
from fusion_core.recipe.text import shown
from fusion_core.shown import close_to

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic_core import ErrorDetails

STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

#: Parts of a schema that hold no schemas of values.
_OTHER_PARTS = frozenset({"metadata", "serialization", "config", "cls", "expected", "default"})

ModelT = TypeVar("ModelT", bound=BaseModel)


def _integer(value: object) -> object:
    return _no_text(value, "integer")


def _number(value: object) -> object:
    return _no_text(value, "number")


def _no_text(value: object, wanted: str) -> object:
    if isinstance(value, str | bytes | bool):
        given = "a truth value" if isinstance(value, bool) else "text"
        said = {"wanted": wanted, "given": given}
        raise PydanticCustomError("number", "Input should be a valid {wanted}, not {given}", said)
    return value


_NUMBERS = {"int": _integer, "float": _number}


def _strict(part: Any) -> Any:  # noqa: ANN401 - a node of pydantic's schema, or what one holds
    if isinstance(part, list | tuple):
        return type(part)(_strict(each) for each in part)
    if not isinstance(part, dict) or part.get("type") == "model":  # another model's own business
        return part
    match part.get("type"):
        case "bool":
            return {**part, "strict": True}
        case "int" | "float" as kind:
            return core_schema.no_info_before_validator_function(_NUMBERS[kind], part)
        case "function-before" if part["function"]["function"] in _NUMBERS.values():
            return part
        case _:
            return {k: each if k in _OTHER_PARTS else _strict(each) for k, each in part.items()}


if TYPE_CHECKING:  # the metaclass is then pydantic's, which tells them of options' names and types
    _OptionsType = type
else:

    class _OptionsType(type(BaseModel)):
        def __call__(cls, *arguments, **values):  # noqa: ANN002, ANN003, ANN204
            """Say of options given from Python what is said of those in a recipe."""
            try:
                return super().__call__(*arguments, **values)
            except ValidationError as error:
                raise _refusal(error, cls) from error


class Options(BaseModel, metaclass=_OptionsType):
    """Options: frozen, refusing what they do not know, and taking no text for a number.

    YAML tells numbers and truth values from text, so `"0.5"` and `"yes"` are mistakes, while
    everything else (lists for tuples, names for members of an enumeration, text for a path) is
    converted as pydantic does.
    """

    model_config = STRICT

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401 - pydantic's type
        """Make every number and truth value strict, however deep in lists and mappings."""
        schema = handler(source)
        own: dict[str, Any] = handler.resolve_ref_schema(schema)  # type: ignore[assignment]
        own |= {key: part if key in _OTHER_PARTS else _strict(part) for key, part in own.items()}
        return schema


def validated(  # noqa: PLR0913 - what is validated, and what its errors are to say
    model: type[ModelT],
    values: object,
    *,
    prefix: str = "",
    hint: str | None = None,
    beside: Iterable[str] = (),
    context: Any = None,  # noqa: ANN401 - what validators are given
) -> ModelT:
    """Validate values against a model; raises `RecipeError` with one line a problem.

    `beside` names what may stand beside the model's own options, for suggestions; what stands
    elsewhere, with its section: `algorithm.density`. It is read only if something is wrong.
    """
    try:
        return model.model_validate(values, context=context)
    except ValidationError as error:
        raise _refusal(error, model, prefix=prefix, hint=hint, beside=beside) from error


def _refusal(
    error: ValidationError,
    model: type[BaseModel],
    *,
    prefix: str = "",
    hint: str | None = None,
    beside: Iterable[str] = (),
) -> RecipeError:
    known = [*model.model_fields, *beside]
    lines = [_line(details, model, prefix, known) for details in error.errors()]
    return RecipeError("\n".join(dict.fromkeys(lines)), hint=hint)


def _line(details: ErrorDetails, model: type[BaseModel], prefix: str, known: Sequence[str]) -> str:
    # Tags of a union's branches ("function-before[...]", "str") are pydantic's business.
    place = [str(part) for part in details["loc"] if "[" not in str(part)]
    where = ".".join([prefix, *place] if prefix else place) or "recipe"
    match details["type"]:
        case "extra_forbidden":
            return f"{where}: unknown option{_suggestion(details['loc'], model, known)}"
        case "missing":
            return f"{where}: required"
        case _:
            problem = details["msg"].removeprefix("Value error, ")
            return f"{where} = {shown(details['input'])}: {problem}"


def models_in(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - any type
    """Return the classes of options that a type is made of: of a mapping's values, say."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def _suggestion(
    location: tuple[int | str, ...], model: type[BaseModel], known: Sequence[str]
) -> str:
    if len(location) > 1 and location[0] in model.model_fields:
        inner = models_in(model.model_fields[str(location[0])].annotation)
        tagged = [each for each in inner if f"[{each.__name__}]" in location] or inner
        known = [name for each in tagged for name in each.model_fields] or known
    name = str(location[-1])
    places = {each.rpartition(".")[2]: each for each in reversed(known)}  # the first of a name
    close = [name] if name in places else close_to(name, places)
    if close:
        return f"; did you mean {places[close[0]]}?"
    return f"; known: {', '.join(each for each in known if '.' not in each) or 'none'}"
