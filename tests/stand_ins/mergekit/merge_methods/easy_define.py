"""A decorator that registers a function elsewhere and leaves it as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

FunctionT = TypeVar("FunctionT")


def merge_method(*, name: str, contract: object = None) -> Callable[[FunctionT], FunctionT]:
    assert name.isidentifier()
    return lambda function: function
