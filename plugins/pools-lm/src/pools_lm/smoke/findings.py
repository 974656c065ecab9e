"""The findings of a smoke test, as text and as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from shutil import get_terminal_size
from textwrap import wrap
from typing import TYPE_CHECKING

from fusion_core.commands import escape_control

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pools_lm.smoke.answers import Answer

    #: bits per byte by reading model, then by answering model; None if all answers are empty
    Bits = Mapping[str, Mapping[str, float | None]]

#: A space at which lines are not wrapped.
_NO_BREAK = "\N{NO-BREAK SPACE}"
_NO_PROBLEMS = "no answer is empty, repeats itself or is not finite"


@dataclass(frozen=True)
class Findings:
    """Answers by model, the tested one's last, and how likely models find each other's answers."""

    prompts: Sequence[str]
    #: settings of the test, in words
    how: str
    answers: Mapping[str, Sequence[Answer]]
    bits: Bits
    #: sentences about the weights
    notes: Sequence[str] = ()

    @property
    def model(self) -> str:
        """The name of the tested model."""
        return list(self.answers)[-1]

    @property
    def problems(self) -> Mapping[str, int]:
        """The number of the tested model's answers per defect."""
        return Counter(answer.verdict for answer in self.answers[self.model] if answer.verdict)

    @property
    def same_answers(self) -> Mapping[str, int]:
        """The number of prompts that another model answers word for word as the tested one."""
        *others, tested = self.answers.items()
        texts = [answer.text for answer in tested[1]]
        return {
            name: sum(answer.text == text for answer, text in zip(answers, texts, strict=True))
            for name, answers in others
        }

    def as_json(self) -> str:
        """Return all findings as JSON. A number that is not finite is null."""
        models = {
            name: {
                "answers": [{"text": answer.text, "verdict": answer.verdict} for answer in answers],
                "bits_per_byte": {
                    author: bits if bits is not None and math.isfinite(bits) else None
                    for author, bits in self.bits.get(name, {}).items()
                },
            }
            for name, answers in self.answers.items()
        }
        content = {
            "schema": 1,
            "model": self.model,
            "prompts": list(self.prompts),
            "how": self.how,
            "models": models,
            "problems": dict(self.problems),
            "same_answers": dict(self.same_answers),
            "notes": list(self.notes),
        }
        return json.dumps(content, indent=2)

    def as_text(self) -> str:
        """Return one block per prompt, the table of likelihoods, and the verdict."""
        blocks = [self._block(number) for number in range(len(self.prompts))]
        table = [self._table()] if self.bits else []
        name = _one_line(self.model)
        lines = [f"{name}: {note}" for note in (*self.notes, *self._describe_same_answers())]
        notes = ["\n".join(lines)] if lines else []
        problems = [
            f"{problem} ({count} of {len(self.prompts)} answers)"
            for problem, count in self.problems.items()
        ]
        verdict = f"{name}: {', '.join(problems) or _NO_PROBLEMS}"
        return "\n\n".join([f"smoke test: {self.how}", *blocks, *table, *notes, verdict])

    def _describe_same_answers(self) -> Iterator[str]:
        """Yield who answers word for word as the tested model, and what to check."""
        same, total = self.same_answers, len(self.prompts)
        counts = [
            f"{_one_line(name)} ({count} of {total} prompts)"
            for name, count in same.items()
            if count
        ]
        if counts:
            yield f"answers word for word as {', '.join(counts)}"
        copies = [name for name, count in same.items() if count == total]
        if len(copies) > 1 and len(copies) == len(same):
            yield (
                "all models answer alike, so these prompts say nothing about the merge; ask what "
                "the experts learned: --prompt TEXT"
            )
        elif copies:
            yield (
                "if that is not what the merge is for, ask what the experts learned (--prompt "
                "TEXT); if the answers stay the same, look in its recipe.yaml for a scale or "
                "weight of 0, and for experts that are copies of the base"
            )

    def _block(self, number: int) -> str:
        width = max(len(_one_line(name)) for name in self.answers)
        lines = _wrap("", _one_line(self.prompts[number]))
        for name, answers in self.answers.items():
            text, verdict = answers[number].text, answers[number].verdict
            suffix = [f"[{verdict}]".replace(" ", _NO_BREAK)] if verdict else []
            marked = "  ".join([_one_line(text.strip()), *suffix]).strip()
            lines += _wrap(f"  {_one_line(name):{width}}  ", marked)
        return "\n".join(lines)

    def _table(self) -> str:
        authors = list(next(iter(self.bits.values())))
        rows = [["answers of", *map(_one_line, authors)]]
        for reader, bits in self.bits.items():
            cells = [bits.get(author) for author in authors]
            texts = ["-" if cell is None else f"{cell:.3f}" for cell in cells]
            rows.append([f"to {_one_line(reader)}", *texts])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([f"{lines[0]}  in bits per byte, lower is likelier", *lines[1:]])


def _one_line(text: str) -> str:
    return escape_control(text.replace("\n", "\\n"))


def _wrap(prefix: str, text: str) -> list[str]:
    """Wrap a text to the terminal's width, indented after a prefix."""
    width = max(get_terminal_size().columns, len(prefix) + 20)
    lines = wrap(text, width, initial_indent=prefix, subsequent_indent=" " * len(prefix))
    return [line.replace(_NO_BREAK, " ") for line in lines or [prefix]]
