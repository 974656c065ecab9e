"""The base class of tasks with questions, which may follow few-shot examples."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, TypeVar

from fusion_core import Split
from fusion_core.errors import FusionError, RecipeError
from pools_lm.tasks.config import QuestionLines
from pools_lm.tasks.lines import read_lines
from pools_lm.tasks.prompts import Pair, Turn
from pools_lm.tasks.task import LanguageTask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pools_lm.tasks.lines import Line

QuestionT = TypeVar("QuestionT", bound=QuestionLines)


class QuestionTask(LanguageTask[QuestionT]):
    """A task of questions with right answers in words."""

    @abstractmethod
    def answer(self, line: Line) -> str:
        """Return the right answer; raise `FusionError` for a line without one."""

    @property
    def system(self) -> str | None:
        """The system message of the task's conversations."""
        system: str | None = self.data.system
        return system

    def check_line(self, line: Line) -> None:
        """Raise a `FusionError` for a line without a question or an answer."""
        self._prompt(line)
        self.answer(line)

    def pairs(self, lines: Sequence[Line], split: Split) -> list[Pair]:
        """Return the tokens of every question, with those of its answer unless it is hidden."""
        answers: list[str | None] = [None] * len(lines)
        if not (split is Split.UNLABELED and self.hides_answers):
            answers = [
                self.answer(line)
                if split is not Split.UNLABELED or line.has(self.data.answer)
                else None
                for line in lines
            ]
        asked = list(zip(self.questions(lines), answers, strict=True))
        prompts = self.bound_prompts
        contexts = prompts.contexts([question for question, answer in asked if answer is None])
        alone = (Pair(context).within(prompts.length) for context in contexts)
        answered = iter(
            prompts.pairs([(question, answer) for question, answer in asked if answer is not None])
        )
        return [next(alone if answer is None else answered) for answer in answers]

    def evaluation_data(self) -> list[str]:
        """Return the test file, and the file of the few-shot examples."""
        train = self.data.train if self.data.shots else None
        return [*super().evaluation_data(), *filter(None, [train])]

    def questions(self, lines: Sequence[Line]) -> list[str]:
        """Return the question of each line, after the few-shot examples."""
        shots = [Turn(self._prompt(shot), self.answer(shot)) for shot in self._shots()]
        conversations = [[*shots, Turn(self._prompt(line))] for line in lines]
        return self.bound_prompts.questions(conversations, self.system)

    def check(self) -> None:
        """Check the first example, and that the chat template renders its conversation."""
        super().check()
        shots = [Turn("Hello", "Hello")] if self.data.shots else []
        self.check_template([*shots, Turn("Hello")])

    def _shots(self) -> Sequence[Line]:
        if not self.data.shots:
            return []
        if self.data.train is None:
            raise RecipeError(
                f"task {self.name!r} has no training examples for its {self.data.shots} shots",
                hint=f"Name a file: task_pool.datasets.{self.name}.train.",
            )
        shots = read_lines(self.data.train, self.data.shots)
        if len(shots) < self.data.shots:
            raise FusionError(
                f"task {self.name!r}: {self.data.train} has {len(shots)} examples, expected "
                f"{self.data.shots} for its shots",
                hint=f"Add examples, or lower task_pool.datasets.{self.name}.shots.",
            )
        return shots

    def _prompt(self, line: Line) -> str:
        return line.fill(self.data.prompt)
