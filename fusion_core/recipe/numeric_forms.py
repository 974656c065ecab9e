"""The forms that a numeric option takes, and hints about those that it does not take."""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from fusion_core.recipe.per_expert import is_per_expert
from fusion_core.recipe.text import format_flow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

#: The forms of numeric options, and how `fuse info` explains them.
FORMS = {
    "number": "one value for all experts and layers",
    "per expert": "a number per expert by name, such as {math: 0.2, code: 0.5}, or a list in pool "
    "order",
    "by depth": "a list from the first layer to the last, written in by_depth: {OPTION: [0.2, 0.5]}"
    " or, per expert, by_depth: {OPTION: {math: [0.2, 0.5], code: 0.3}}",
}


def forms_of(field: FieldInfo, *, by_depth: bool) -> tuple[str, ...]:
    """Return the forms of an option, keys of `FORMS`; none unless it is a number.

    `by_depth` says whether the component's options may follow a tensor's depth.
    """
    if is_per_expert(field):
        forms: tuple[str, ...] = ("number", "per expert")
    elif float in _branches(field.annotation):
        forms = ("number",)
    else:
        return ()
    return (*forms, "by depth") if by_depth else forms


def hint_at_forms(
    config: type[BaseModel], options: Mapping[str, Any], *, by_depth: bool
) -> list[str]:
    """Return what to write instead of lists and mappings that numeric options do not take."""
    forms = {
        name: forms_of(field, by_depth=by_depth) for name, field in config.model_fields.items()
    }
    per_expert = ", ".join(name for name, known in forms.items() if "per expert" in known)
    hints = []
    for name, value in options.items():
        known = forms.get(name, ())
        if known and _holds_filter(value):
            override = f'{{match: "*mlp*", {name}: 0.5}}'
            hints.append(f"For values by tensor name: overrides: [{override}]")
        elif "per expert" not in known and "number" in known and isinstance(value, Mapping):
            others = f" These take one per expert: {per_expert}." if per_expert else ""
            hints.append(f"{name} takes one number for all experts.{others}")
        elif "by depth" in known and _holds_curve(value, in_pool_order="per expert" in known):
            curve = format_flow({name: value})
            hints.append(f"For values from the first layer to the last: by_depth: {curve}")
        elif "by depth" in known and _holds_curves_in_order(value):
            curves = format_flow({name: {"math": [0.2, 0.5], "code": 0.3}})
            hints.append(f"For values from the first layer to the last: by_depth: {curves}")
    return hints


def _holds_filter(value: object) -> bool:
    """Return whether a value says which tensors it is for, as mergekit's do."""
    if isinstance(value, Mapping):
        return not {"filter", "match"}.isdisjoint(value)
    return isinstance(value, list | tuple) and any(map(_holds_filter, value))


def _holds_curves_in_order(value: object) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(item, list) for item in value)


def _holds_curve(value: object, *, in_pool_order: bool) -> bool:
    """Return whether a value has a list that cannot be one of values in pool order."""
    if isinstance(value, Mapping):
        return any(isinstance(item, list | tuple) for item in value.values())
    return isinstance(value, list | tuple) and not in_pool_order


def _branches(annotation: Any) -> Iterator[Any]:  # noqa: ANN401 - any type
    """Yield the types that a union, an optional or an annotated type consists of."""
    if hasattr(annotation, "__metadata__"):
        yield from _branches(annotation.__origin__)
    elif get_origin(annotation) in {Union, UnionType}:
        for branch in get_args(annotation):
            yield from _branches(branch)
    else:
        yield annotation
