"""Tasks that classify a text, for the small encoder: two are made of tasks of lm-mini."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.append(str(Path(__file__).parents[1] / "plugins" / "pools-lm" / "build"))

from tasks import KINDS, SPEECH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from corpus import Inputs
    from tasks import Task

    Line = Mapping[str, Any]

#: Lines of a task by split; the others are for training.
SIZES = {"test": 200, "unlabeled": 250}
#: The chapters of the Bible's parts, in order.
_PARTS = {
    "law": 187,
    "history": 249,
    "poetry": 243,
    "prophets": 250,
    "gospels": 117,
    "letters": 143,
}
_BOOKS = ("WordNet", "Jargon File", "Devil's Dictionary")
#: Files of WordNet's verbs and of its nouns for what is not a thing, by number.
_VERBS = {"change": 30, "thought": 31, "speech": 32, "contact": 35, "motion": 38, "society": 41}
_IDEAS = {"act": 4, "attribute": 7, "thought": 9, "message": 10, "state": 26}
_MOST_PER_CLASS = 1000


@dataclass(frozen=True)
class Data:
    """A task's lines by split, and how its task pool reads them."""

    lines: Mapping[str, Sequence[Line]]
    options: Mapping[str, Any]

    def write(self, name: str, directory: Path) -> dict[str, Any]:
        """Write the lines of each split, and return the task's options with its files."""
        files = {}
        for split, lines in self.lines.items():
            path = directory / f"{name}-{split}.jsonl"
            path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
            files[split] = str(path)
        return {**self.options, **files}


def class_tasks(inputs: Inputs, tasks: Sequence[Task]) -> dict[str, Data]:
    """Return tasks that classify a text: glosses, verses, and entries of dictionaries."""
    by_name = {task.name: task for task in tasks}
    draw = random.Random(0)
    classified: dict[str, tuple[list[Line], tuple[str, ...]]] = {
        name: (
            [
                {"text": line["question"].partition("? ")[2], "label": names.index(answer)}
                for line in (*by_name[task].test, *by_name[task].unlabeled, *by_name[task].train)
                for answer in [line["choices"][line["answer"]]]
            ],
            names,
        )
        for name, task, names in (
            ("thing", "kinds", tuple(KINDS.values())),
            ("part of speech", "speech", SPEECH),
        )
    }
    classified["part of the Bible"] = (_verses(inputs, draw), tuple(_PARTS))
    classified["dictionary"] = (_entries(inputs, draw), _BOOKS)
    return {name: _split(lines, names) for name, (lines, names) in classified.items()}


def other_class_tasks(inputs: Inputs) -> dict[str, Data]:
    """Return further tasks that classify a text, none of which is among `class_tasks`."""
    glosses: dict[int, list[str]] = {}
    for synset in inputs.synsets():
        glosses.setdefault(synset.lexname, []).append(synset.gloss)
    chapters, new = inputs.chapters(), _PARTS["gospels"] + _PARTS["letters"]
    testaments = {"old": chapters[:-new], "new": chapters[-new:]}
    verses = {
        name: [verse for chapter in part for verse in chapter] for name, part in testaments.items()
    }
    everything = [gloss for part in glosses.values() for gloss in part]
    books = (everything, inputs.jargon(), inputs.devil(), [*verses["old"], *verses["new"]])
    classes = {
        "verb": {name: glosses[file] for name, file in _VERBS.items()},
        "idea": {name: glosses[file] for name, file in _IDEAS.items()},
        "testament": verses,
        "source": {
            name: [" ".join(text.split()[3:20]) for text in texts]
            for name, texts in zip((*_BOOKS, "Bible"), books, strict=True)
        },
    }
    return {name: _split(_balanced(texts), tuple(texts)) for name, texts in classes.items()}


def _balanced(texts: Mapping[str, Sequence[str]]) -> list[Line]:
    """Return as many different texts of each class, in a random order."""
    draw = random.Random(0)
    distinct = [list(dict.fromkeys(filter(None, of_class))) for of_class in texts.values()]
    count = min(_MOST_PER_CLASS, *map(len, distinct))
    lines = [
        {"text": text, "label": label}
        for label, of_class in enumerate(distinct)
        for text in draw.sample(of_class, count)
    ]
    draw.shuffle(lines)
    return lines


def _split(lines: Sequence[Line], names: Sequence[str]) -> Data:
    """Split a task's lines, the last of which are for training."""
    test, unlabeled = SIZES["test"], SIZES["test"] + SIZES["unlabeled"]
    splits = {"test": lines[:test], "unlabeled": lines[test:unlabeled], "train": lines[unlabeled:]}
    return Data(splits, {"names": list(names)})


def _verses(inputs: Inputs, draw: random.Random) -> list[Line]:
    """Return verses and the part of the Bible that each is from; each chapter has two."""
    labels = [number for number, count in enumerate(_PARTS.values()) for _ in range(count)]
    chapters = list(zip(inputs.chapters(), labels, strict=True))
    draw.shuffle(chapters)
    return [
        {"text": verse, "label": label}
        for verses, label in chapters
        for verse in draw.sample(verses, 2)
    ]


def _entries(inputs: Inputs, draw: random.Random) -> list[Line]:
    """Return as many entries of each dictionary, the word left out."""
    books = [[synset.gloss for synset in inputs.synsets()], inputs.jargon(), inputs.devil()]
    least = min(map(len, books))
    lines = [
        {"text": " ".join(text.split()[3:20]), "label": label}
        for label, texts in enumerate(books)
        for text in draw.sample(texts, least)
    ]
    draw.shuffle(lines)
    return lines
