"""Questions with answers: what a model is asked, after as many examples as a recipe says."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, TypeVar

from fusion_core import Split
from fusion_core.errors import RecipeError
from pools_lm.tasks.config import QuestionLines
from pools_lm.tasks.lines import read_lines
from pools_lm.tasks.prompts import Pair, Turn
from pools_lm.tasks.task import LanguageTask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pools_lm.tasks.lines import Line

QuestionT = TypeVar("QuestionT", bound=QuestionLines)


class QuestionTask(LanguageTask[QuestionT]):
    """A task of questions, each with its right answer in words."""

    @abstractmethod
    def answer(self, line: Line) -> str:
        """Return the right answer; raises `FusionError` for a line that has none."""

    def look(self, line: Line) -> None:
        """Raise a `FusionError` for a line without a question, or without its answer."""
        self._prompt(line)
        self.answer(line)

    def pairs(self, lines: Sequence[Line], split: Split) -> list[Pair]:
        """Return every question's tokens, and those of its answer where that may be seen."""
        hidden = split is Split.UNLABELED and self.hides_answers
        answers = [self._answer(line, split, hidden=hidden) for line in lines]
        asked = list(zip(self.questions(lines), answers, strict=True))
        contexts = self.bound.contexts([question for question, answer in asked if answer is None])
        alone = (Pair(context).within(self.bound.length) for context in contexts)
        known = [(question, answer) for question, answer in asked if answer is not None]
        answered = iter(self.bound.pairs(known))
        return [next(alone if answer is None else answered) for answer in answers]

    def measured(self) -> list[str]:
        """Return the test file, and that of the examples that are shown."""
        shown = self.data.train if self.data.shots else None
        return [*super().measured(), *filter(None, [shown])]

    def questions(self, lines: Sequence[Line]) -> list[str]:
        """Return what a model is asked of every line."""
        shots = [Turn(self._prompt(shot), self.answer(shot)) for shot in self._shots()]
        asked = [[*shots, Turn(self._prompt(line))] for line in lines]
        return self.bound.questions(asked, self.data.system)

    def check(self) -> None:
        """Look at the first example, and see that the chat template writes a question."""
        super().check()
        if self.prompts is not None:
            self.prompts.check_template()

    def _answer(self, line: Line, split: Split, *, hidden: bool) -> str | None:
        is_absent = split is Split.UNLABELED and not line.has(self.data.answer)
        return None if hidden or is_absent else self.answer(line)

    def _shots(self) -> Sequence[Line]:
        if not self.data.shots:
            return []
        if self.data.train is None:
            raise RecipeError(
                f"task {self.name!r} is to show {self.data.shots} examples, and has none",
                hint=f"Name a file: task_pool.datasets.{self.name}.train.",
            )
        return read_lines(self.data.train, self.data.shots)

    def _prompt(self, line: Line) -> str:
        return line.filled(self.data.prompt)
