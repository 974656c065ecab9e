"""Cached attributes without the lock that `functools.cached_property` has in Python 3.11."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from functools import cached_property

    lazy = cached_property
else:

    class lazy:  # noqa: N801 - used like `functools.cached_property`
        """An attribute that is computed when it is first read.

        In Python 3.11 all instances share the lock of `functools.cached_property`, so workers that
        each read their own piece would take turns. Without a lock, two threads that read the same
        attribute at the same time may both compute it.
        """

        def __init__(self, compute):  # noqa: ANN001, ANN204 - checkers see cached_property
            self._compute = compute
            self.__doc__ = compute.__doc__

        def __set_name__(self, owner, name):  # noqa: ANN001, ANN204
            self._name = name

        def __get__(self, instance, owner):  # noqa: ANN001, ANN204
            if instance is None:
                return self
            value = instance.__dict__[self._name] = self._compute(instance)
            return value
