"""A reader for the part of pickle that torch's checkpoints use. It runs no code.

Python's unpickler is unsafe even when it imports nothing: one opcode can claim 64 GB for its memo,
and a tuple of tuples of tuples as a key takes hours to hash. This reader executes the 34 opcodes
that torch writes, keeps objects as inert `Record`s, and counts what it makes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    #: Makes the result of a call from its arguments.
    Make = Callable[[tuple[Any, ...]], Any]

_DEEPEST_STACK = 100_000
#: A pickle of torch has one opcode per two bytes, and one object per eight, or fewer.
_OPCODES_PER_BYTE, _OBJECTS_PER_BYTE, _FREE = 0.65, 1 / 6, 1000
_LONGEST_INTEGER = 8
_MARK = object()
_NAME = re.compile(r"[\w.]{1,200}")


class UnsafePickleError(Exception):
    """A pickle names something that no checkpoint needs, or is not a pickle of torch."""


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that a pickle names. It is not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Record:
    """An object in a pickle: its class, the arguments it was made with, and its state."""

    kind: Global
    arguments: tuple[Any, ...] = ()
    state: Any = field(default=None)


def read_pickle(
    content: bytes,
    allowed: Callable[[Global], bool],
    calls: Mapping[str, Make],
) -> Any:  # noqa: ANN401 - whatever was pickled
    """Return the object in a pickle, made of builtin types and `Record`s.

    `allowed` says which classes and functions may be named. `calls` makes the results of some of
    them by their name; a call of another one is a `Record`. Raises `UnsafePickleError` for
    everything else.
    """
    try:
        return _Reader(content, allowed, calls).run()
    except (IndexError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UnsafePickleError(f"it is malformed ({type(error).__name__}: {error})") from error


class _Reader:
    """The state of one reading: a stack, marks in it, and a memo."""

    def __init__(
        self,
        content: bytes,
        allowed: Callable[[Global], bool],
        calls: Mapping[str, Make],
    ) -> None:
        self._content, self._position = content, 0
        self._allowed, self._calls = allowed, calls
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._objects = 0
        self._most_objects = int(len(content) * _OBJECTS_PER_BYTE) + _FREE
        self._most_opcodes = int(len(content) * _OPCODES_PER_BYTE) + _FREE

    def run(self) -> Any:  # noqa: ANN401
        """Execute opcodes up to the first STOP."""
        content, stack = self._content, self._stack
        for _ in range(self._most_opcodes):
            opcode = content[self._position]
            self._position += 1
            if opcode == _STOP:
                (result,) = stack
                return result
            if opcode not in _OPCODES:
                raise UnsafePickleError(f"it has the opcode {bytes([opcode])!r}")
            _OPCODES[opcode](self)
            if len(stack) > _DEEPEST_STACK:
                raise UnsafePickleError("its stack is too deep")
        raise UnsafePickleError("it has more opcodes than a checkpoint needs")

    def take(self, size: int) -> bytes:
        start = self._position
        self._position = start + size
        if self._position > len(self._content):
            raise UnsafePickleError("it is truncated")
        return self._content[start : self._position]

    def integer(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def byte(self) -> int:
        """Read an integer of one byte, the most frequent argument."""
        self._position += 1
        return self._content[self._position - 1]

    def push(self, value: Any) -> None:  # noqa: ANN401
        """Push a new object."""
        self._objects += 1
        if self._objects > self._most_objects:
            raise UnsafePickleError("it makes more objects than a checkpoint has")
        self._stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def mark(self) -> None:
        self._marks.append(len(self._stack))
        if len(self._marks) > _DEEPEST_STACK:
            raise UnsafePickleError("its stack is too deep")

    def tuple_to_mark(self) -> None:
        self.push(tuple(self.pop_to_mark()))

    def tuple_of(self, size: int) -> None:
        items = tuple(self._stack[-size:])
        if len(items) < size:
            raise UnsafePickleError("its stack is empty")
        del self._stack[-size:]
        self.push(items)

    def append(self) -> None:
        item = self._stack.pop()
        self._list().append(item)

    def appends(self) -> None:
        items = self.pop_to_mark()
        self._list().extend(items)

    def _list(self) -> list[Any]:
        target = self._stack[-1]
        if type(target) is not list:
            raise UnsafePickleError("it appends to an object that is not a list")
        return target

    def set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def set_items(self) -> None:
        self._set(self.pop_to_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise UnsafePickleError("it sets an item of an object that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in {str, int, Record}:  # a record is hashed by its identity
                raise UnsafePickleError(f"it has a {type(key).__name__} as a key")
            target[key] = value

    def long(self) -> None:
        size = self.byte()
        if size > _LONGEST_INTEGER:
            raise UnsafePickleError("it has an integer of more than 64 bits")
        self.push(self.integer(size, signed=True))

    def text(self, size: int) -> None:
        self.push(self.take(size).decode("utf-8"))

    def memoize(self) -> None:
        self.put(len(self._memo))

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]
        if len(self._memo) > self._most_objects:
            raise UnsafePickleError("its memo is larger than a checkpoint needs")

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _line(self) -> str:
        end = self._content.index(b"\n", self._position)
        return self.take(end + 1 - self._position)[:-1].decode("ascii")

    def name_global(self) -> None:
        module = self._line()
        self._push_global(module, self._line())

    def stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push_global(module, name)

    def _push_global(self, module: object, name: object) -> None:
        if not all(isinstance(text, str) and _NAME.fullmatch(text) for text in (module, name)):
            raise UnsafePickleError("it names an object with an invalid module or name")
        named = Global(str(module), str(name))
        if not self._allowed(named):
            raise UnsafePickleError(f"it names {named}, which no checkpoint of torch needs")
        self.push(named)

    def call(self) -> None:
        arguments, called = self._stack.pop(), self._stack.pop()
        if type(called) is not Global or type(arguments) is not tuple:
            raise UnsafePickleError("it calls an object that is not a class or function")
        make = self._calls.get(called.name)
        self.push(Record(called, arguments) if make is None else make(arguments))

    def build(self) -> None:
        state, record = self._stack.pop(), self._stack[-1]
        if type(record) is not Record:
            raise UnsafePickleError("it sets the state of an object that has none")
        record.state = state

    def persistent(self) -> None:
        identity = self._stack.pop()
        if type(identity) is not tuple:
            raise UnsafePickleError("it refers to a stored object with a key that is not a tuple")
        self.push(Record(Global("torch", "Storage"), identity))


_STOP = ord(".")
_OPCODES: dict[int, Callable[[_Reader], object]] = {
    0x80: lambda reader: reader.take(1),  # PROTO
    0x95: lambda reader: reader.take(8),  # FRAME
    ord("("): _Reader.mark,
    ord("t"): _Reader.tuple_to_mark,
    ord(")"): lambda reader: reader.push(()),
    0x85: lambda reader: reader.tuple_of(1),
    0x86: lambda reader: reader.tuple_of(2),
    0x87: lambda reader: reader.tuple_of(3),
    ord("]"): lambda reader: reader.push([]),
    ord("a"): _Reader.append,
    ord("e"): _Reader.appends,
    ord("}"): lambda reader: reader.push({}),
    ord("s"): _Reader.set_item,
    ord("u"): _Reader.set_items,
    ord("N"): lambda reader: reader.push(None),
    0x88: lambda reader: reader.push(True),  # NEWTRUE
    0x89: lambda reader: reader.push(False),  # NEWFALSE
    ord("K"): lambda reader: reader.push(reader.byte()),
    ord("M"): lambda reader: reader.push(reader.integer(2)),
    ord("J"): lambda reader: reader.push(reader.integer(4, signed=True)),
    0x8A: _Reader.long,
    0x8C: lambda reader: reader.text(reader.byte()),
    ord("X"): lambda reader: reader.text(reader.integer(4)),
    0x94: _Reader.memoize,
    ord("q"): lambda reader: reader.put(reader.byte()),
    ord("r"): lambda reader: reader.put(reader.integer(4)),
    ord("h"): lambda reader: reader.get(reader.byte()),
    ord("j"): lambda reader: reader.get(reader.integer(4)),
    ord("c"): _Reader.name_global,
    0x93: _Reader.stack_global,
    0x81: _Reader.call,  # NEWOBJ
    ord("R"): _Reader.call,
    ord("b"): _Reader.build,
    ord("Q"): _Reader.persistent,
}
