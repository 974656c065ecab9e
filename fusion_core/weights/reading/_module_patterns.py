r"""PEFT's patterns for the names of modules, matched without backtracking.

They are regular expressions that come with an adapter, and PEFT tries each as
`re.match(rf"(.*\.)?({pattern})$", name)`. Here all of them are one automaton that reads a name
once, so that no pattern can keep it busy. It knows what occurs in practice: literals, `.`, `\d`,
`\.`, sets such as `[0-9]`, groups, `|`, `*`, `+`, `?`, `^` and `$`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

Test = Callable[[str], bool]
States = frozenset[int]

_LONGEST, _DEEPEST = 1000, 20
#: How much is looked at for all patterns and names: many times what the largest adapters take.
_MOST_STEPS, _STEPS_A_STATE = 3_000_000, 15
_REPEATS = ("*", "+", "?")
_SPECIAL = frozenset("()[]{}|*+?^$.\\")


class ModulePatterns:
    """Patterns in their order; raises `ValueError` naming one that is not understood."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._automaton = _Automaton()
        before, start = self._automaton.state(), self._automaton.state()
        self._automaton.follow(before, before, test=_any)
        self._automaton.follow(before, start, char=".")
        self._ends = {
            _Parser(self._automaton, pattern).parse(start): number
            for number, pattern in enumerate(patterns)
        }
        self._begin = self._automaton.closed([before, start], "^")

    def first(self, name: str) -> int | None:
        """Return the number of the first pattern that matches a module's name."""
        if not self._ends:
            return None
        self._automaton.count_steps(len(name))
        states = self._begin
        for char in name:
            states = self._automaton.after(states, char)
        found = self._automaton.closed(states, "$") & self._ends.keys()
        return min((self._ends[state] for state in found), default=None)


class _Automaton:
    """States, and what leads from one to the next; sets of states are followed at once."""

    def __init__(self) -> None:
        self._count = self._steps = 0
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._tests: defaultdict[int, list[tuple[Test, int]]] = defaultdict(list)
        #: by state and character, or the end of a name that is `^` or `$`
        self._literals: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
        self._known: dict[tuple[States, str], States] = {}
        self._sets: dict[States, States] = {}

    def state(self) -> int:
        """Add a state."""
        self._count += 1
        self.count_steps(_STEPS_A_STATE)
        return self._count

    def follow(self, one: int, other: int, *, char: str = "", test: Test | None = None) -> None:
        """Lead from one state to another: at once, after a character, or one that a test takes."""
        if test is not None:
            self._tests[one].append((test, other))
        elif char:
            self._literals[one, char].append(other)
        else:
            self._free[one].append(other)

    def after(self, states: States, char: str) -> States:
        """Return where a character leads."""
        if (states, char) not in self._known:
            self.count_steps(len(states))
            found = [each for state in states for each in self._literals.get((state, char), ())]
            for state in states:
                found += [each for test, each in self._tests.get(state, ()) if test(char)]
            self._known[states, char] = self.closed(found)
        return self._known[states, char]

    def closed(self, states: Iterable[int], end: str = "") -> States:
        """Add what is reached without a character, at an end of the name also through that."""
        found, left = set(states), list(states)
        while left:
            state = left.pop()
            reached = [*self._free.get(state, ()), *self._literals.get((state, end * 2), ())]
            left += [each for each in reached if each not in found]
            found.update(reached)
        self.count_steps(len(found))
        same = frozenset(found)  # one object, which is found again without comparing
        return self._sets.setdefault(same, same)

    def count_steps(self, count: int) -> None:
        """Raise `ValueError` when there were too many."""
        self._steps += count
        if self._steps > _MOST_STEPS:
            raise ValueError("its patterns are too involved")


class _Parser:
    """Adds one pattern to an automaton."""

    def __init__(self, automaton: _Automaton, pattern: str) -> None:
        self._automaton = automaton
        self._pattern = pattern
        self._at = self._depth = 0

    def parse(self, start: int) -> int:
        """Return the state in which the pattern has matched."""
        end = self._either(start)
        if self._at < len(self._pattern) or len(self._pattern) > _LONGEST:
            raise self._refused()
        return end

    def _either(self, start: int) -> int:
        end = self._automaton.state()
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._refused()
        while True:
            self._automaton.follow(self._sequence(start), end)
            if not self._take("|"):
                self._depth -= 1
                return end

    def _sequence(self, state: int) -> int:
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            state = self._repeated(state)
        return state

    def _repeated(self, start: int) -> int:
        if self._pattern[self._at] in "^$":
            return self._end(start)
        following = self._pattern[self._at + 1 : self._at + 2]
        if self._pattern[self._at] not in _SPECIAL and following not in _REPEATS:
            return self._atom(start)
        begin, end = self._automaton.state(), self._automaton.state()
        self._automaton.follow(start, begin)
        last = self._atom(begin)
        self._automaton.follow(last, end)
        repeat = next(filter(self._take, _REPEATS), None)
        if repeat in {"*", "+"}:
            self._automaton.follow(last, begin)
        if repeat in {"*", "?"}:
            self._automaton.follow(begin, end)
        if repeat is not None:
            self._check_no_repeat()
        return end

    def _end(self, start: int) -> int:
        end = self._automaton.state()
        self._automaton.follow(start, end, char=self._pattern[self._at] * 2)
        self._at += 1
        self._check_no_repeat()
        return end

    def _check_no_repeat(self) -> None:
        # Of repeats, those are lazy or possessive; of ends, an error to `re`.
        if any(map(self._take, _REPEATS)):
            raise self._refused()

    def _atom(self, start: int) -> int:
        """Read a character, a set or a group."""
        char, end = self._pattern[self._at], self._automaton.state()
        self._at += 1
        if char == "(":
            last = self._group(start)
            self._automaton.follow(last, end)
        elif char == "[":
            self._automaton.follow(start, end, test=self._set().__contains__)
        elif char == ".":
            self._automaton.follow(start, end, test=_any)
        elif char == "\\" and self._take("d"):
            self._automaton.follow(start, end, test=str.isdecimal)
        else:
            self._automaton.follow(start, end, char=self._literal(char))
        return end

    def _group(self, start: int) -> int:
        if self._take("?") and not self._take(":"):
            raise self._refused()
        last = self._either(start)
        if not self._take(")"):
            raise self._refused()
        return last

    def _literal(self, char: str) -> str:
        if char == "\\":
            char = self._pattern[self._at : self._at + 1]
            self._at += 1
            if char not in _SPECIAL | {"-", "_", "/"}:
                raise self._refused()
        elif char in _SPECIAL:
            raise self._refused()
        return char

    def _set(self) -> frozenset[str]:
        """Read a set of letters, digits and ranges of them."""
        body, closed, _ = self._pattern[self._at :].partition("]")
        self._at += len(body) + 1
        plain = body.replace("-", "").replace("_", "")
        if not closed or not plain.isalnum() or not plain.isascii() or "--" in body:
            raise self._refused()
        found: set[str] = set()
        while body:
            one, dash, other = body[0], body[1:2], body[2:3]
            is_range = dash == "-" and bool(other)
            if is_range and one > other:
                raise self._refused()
            found |= {chr(n) for n in range(ord(one), ord(other) + 1)} if is_range else {one}
            body = body[3:] if is_range else body[1:]
        return frozenset(found)

    def _take(self, text: str) -> bool:
        """Go past a text if it is next."""
        taken = self._pattern.startswith(text, self._at)
        self._at += len(text) if taken else 0
        return taken

    def _refused(self) -> ValueError:
        return ValueError(f"the pattern {self._pattern[:80]!r} is not one that is understood")


def _any(_: str) -> bool:
    return True
