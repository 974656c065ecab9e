"""What a smoke test found, for people and for programs."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from shutil import get_terminal_size
from textwrap import wrap
from typing import TYPE_CHECKING

from fusion_core.commands import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pools_lm.smoke.answers import Answer

    #: bits per byte by who reads and, within, who said it; None where nothing was said
    Bits = Mapping[str, Mapping[str, float | None]]

#: A space at which no line is folded.
_TIED = "\N{NO-BREAK SPACE}"
_SOUND = "no answer is empty, repeats itself or is not finite"


@dataclass(frozen=True)
class Findings:
    """Answers by model, the tested one's last, and how likely models find each other's."""

    prompts: Sequence[str]
    #: how they were put, in words
    how: str
    answers: Mapping[str, Sequence[Answer]]
    bits: Bits
    #: sentences about the weights
    notes: Sequence[str] = ()

    @property
    def model(self) -> str:
        """The model that is tested."""
        return list(self.answers)[-1]

    @property
    def problems(self) -> Mapping[str, int]:
        """What is wrong with how many of its answers."""
        return Counter(each.verdict for each in self.answers[self.model] if each.verdict)

    def as_json(self) -> str:
        """Return all of it; a number that is not finite is null."""
        models = {
            name: {
                "answers": [{"text": answer.text, "verdict": answer.verdict} for answer in answers],
                "bits_per_byte": {
                    author: _finite(bits) for author, bits in self.bits.get(name, {}).items()
                },
            }
            for name, answers in self.answers.items()
        }
        asked = {"schema": 1, "model": self.model, "prompts": list(self.prompts), "how": self.how}
        judged = {"problems": dict(self.problems), "notes": list(self.notes)}
        return json.dumps({**asked, "models": models, **judged}, indent=2)

    def as_text(self) -> str:
        """Return a block a prompt, a table of how likely answers are found, and what is wrong."""
        blocks = [self._block(number) for number in range(len(self.prompts))]
        table = [self._table()] if self.bits else []
        notes = ["\n".join(f"{_line(self.model)}: {note}" for note in self.notes)]
        ends = [*(notes if self.notes else []), self._verdict()]
        return "\n\n".join([f"smoke test: {self.how}", *blocks, *table, *ends])

    def _block(self, number: int) -> str:
        width = max(len(_line(name)) for name in self.answers)
        lines = _folded("", _line(self.prompts[number]))
        for name, answers in self.answers.items():
            said, verdict = answers[number].text, answers[number].verdict
            marked = [f"[{verdict}]".replace(" ", _TIED)] if verdict else []
            shown = "  ".join([_line(said.strip()), *marked]).strip()
            lines += _folded(f"  {_line(name):{width}}  ", shown)
        return "\n".join(lines)

    def _table(self) -> str:
        authors = list(next(iter(self.bits.values())))
        rows = [["answers of", *map(_line, authors)], *self._rows(authors)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([f"{lines[0]}  in bits per byte, lower is likelier", *lines[1:]])

    def _rows(self, authors: Sequence[str]) -> Iterator[list[str]]:
        for reader, found in self.bits.items():
            cells = (found.get(author) for author in authors)
            yield [
                f"to {_line(reader)}",
                *("-" if cell is None else f"{cell:.3f}" for cell in cells),
            ]

    def _verdict(self) -> str:
        count = len(self.prompts)
        said = (f"{what} ({often} of {count} answers)" for what, often in self.problems.items())
        return f"{_line(self.model)}: {', '.join(said) or _SOUND}"


def _line(text: str) -> str:
    return printable(text.replace("\n", "\\n"))


def _folded(begin: str, text: str) -> list[str]:
    """Return lines as wide as a terminal, those after the first under the text."""
    width = max(get_terminal_size().columns, len(begin) + 20)
    lines = wrap(text, width, initial_indent=begin, subsequent_indent=" " * len(begin))
    return [line.replace(_TIED, " ") for line in lines or [begin]]


def _finite(bits: float | None) -> float | None:
    return bits if bits is not None and math.isfinite(bits) else None
