"""Attributes that are made when they are first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable

ValueT = TypeVar("ValueT")


class lazy(Generic[ValueT]):  # noqa: N801 - it is used as `functools.cached_property` is
    """A `functools.cached_property` without the lock that it has in Python 3.11.

    All instances share that lock: workers that each read a piece of their own would take turns. Two
    threads that ask the same instance at once may both make the value.
    """

    def __init__(self, make: Callable[[Any], ValueT]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> ValueT: ...

    def __get__(self, instance: object, owner: type) -> Self | ValueT:
        if instance is None:
            return self
        value = instance.__dict__[self._name] = self._make(instance)
        return value
