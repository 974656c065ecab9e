"""Options with one value per expert: their type, and their values in pool order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

from pydantic import Discriminator, Tag

from fusion_core.errors import RecipeError
from fusion_core.recipe.text import format_flow

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

ValueT = TypeVar("ValueT")


def _form_of(value: Any) -> str | None:  # noqa: ANN401 - whatever a recipe holds
    if isinstance(value, Mapping):
        return "[by name]"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return "[in order]"
    return "[one]" if isinstance(value, Real) else None


_BY_FORM = Discriminator(
    _form_of,
    custom_error_type="per_expert",
    custom_error_message=(
        "expected a number, one per expert by name, such as {math: 0.2, code: 0.5}, or a list of "
        "them in pool order"
    ),
)

#: One value for all experts, or one per expert: by name, or as a list in pool order. A
#: configuration declares `density: PerExpert[Fraction]`, and `expert_values` reads it.
PerExpert = Annotated[
    Annotated[ValueT, Tag("[one]")]
    | Annotated[Mapping[str, ValueT], Tag("[by name]")]
    | Annotated[Sequence[ValueT], Tag("[in order]")],
    _BY_FORM,
]

#: One factor per expert, by name or in pool order, or one for all. Missing names count as 1.
ExpertWeights = PerExpert[float]


def values_by_expert(config: BaseModel, experts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the values of the options with one per expert, by option and expert.

    Raises `RecipeError` for values that do not fit the experts.
    """
    resolved: dict[str, dict[str, float]] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if value is None or not is_per_expert(field):
            continue
        if name == "weights":
            values: Sequence[float] = expert_weights(value, experts)
        else:
            values = expert_values(value, experts, name)
        resolved[name] = dict(zip(experts, values, strict=True))
    return resolved


def is_per_expert(field: FieldInfo) -> bool:
    """Return whether an option is declared as `PerExpert`, with or without null."""
    return _BY_FORM in field.metadata or _holds_forms(field.annotation)


def _holds_forms(annotation: Any) -> bool:  # noqa: ANN401 - any type
    if _BY_FORM in getattr(annotation, "__metadata__", ()):
        return True
    return any(map(_holds_forms, get_args(annotation)))


def expert_weights(weights: ExpertWeights | None, experts: Sequence[str]) -> list[float]:
    """Resolve the option `weights`: one factor per expert, in pool order; 1 for missing ones.

    Raises `RecipeError` for an unknown expert or a list of the wrong length.
    """
    if weights is None:
        return [1.0] * len(experts)
    if isinstance(weights, Mapping):
        weights = {**dict.fromkeys(experts, 1.0), **weights}
    return [*expert_values(weights, experts, "weights")]


def expert_values(
    value: PerExpert[float], experts: Sequence[str], option: str
) -> tuple[float, ...]:
    """Resolve an option with one value per expert: the values in pool order.

    `option` names it in errors. Raises `RecipeError` for an unknown expert, an expert without a
    value, or a list of the wrong length.
    """
    if isinstance(value, Mapping):
        unknown = sorted(value.keys() - set(experts))
        missing = [name for name in experts if name not in value]
        if unknown:
            problem = f"names unknown experts: {', '.join(unknown)}"
        elif missing:
            problem = f"has no value for {', '.join(missing)}"
        else:
            return tuple(float(value[name]) for name in experts)
    elif isinstance(value, Sequence):
        if len(value) == len(experts):
            return tuple(map(float, value))
        problem = f"has {len(value)} entries for {len(experts)} experts"
    else:
        return (float(value),) * len(experts)
    raise RecipeError(f"algorithm.{option} {problem}", hint=_explain(value, experts, option))


def _explain(value: PerExpert[float], experts: Sequence[str], option: str) -> str:
    """Return the accepted forms, with an example that names the experts."""
    example = format_flow(dict.fromkeys(experts, 0.5))
    hint = f"The experts, in order: {', '.join(experts)}."
    hint += f" Give one number for all, or one per expert: {option}: {example}."
    if isinstance(value, Sequence):
        curve = format_flow({option: [*value] or [1, 0.5]})
        hint += f" For values from the first layer to the last: by_depth: {curve}"
    return hint
