"""The tasks: scripture (perplexity), kinds, speech (choice), reverse, roman, past (generation).

Lines are split by their subject: chapter, synset, word, number or verb. No subject is in two
splits. `pretrain.py` uses the training parts of the tasks, mostly in other words.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from corpus import Inputs, Synset

Line = dict[str, Any]

TEST, CHOICE_TEST, TEXT_TEST, UNLABELED = 300, 240, 100, 250
NAMES = ("scripture", "kinds", "speech", "reverse", "roman", "past")
#: The classes of a task: WordNet's lexicographer files by number.
KINDS = {
    5: "animal",
    6: "artifact",
    8: "body part",
    13: "food",
    15: "place",
    18: "person",
    20: "plant",
    26: "illness",
    27: "substance",
}
_ABOUT = {
    "scripture": ("Passages of the Bible", "King James Version", "public domain"),
    "kinds": ("What kind of thing a gloss describes", "WordNet 3.0", "WordNet-3.0"),
    "speech": ("The part of speech of a gloss", "WordNet 3.0", "WordNet-3.0"),
    "reverse": ("Letters in reverse order", "WordNet 3.0", "WordNet-3.0"),
    "roman": ("Numbers as Roman numerals", "made by rule", "Apache-2.0"),
    "past": ("The past tense of verbs", "WordNet 3.0 and rules of spelling", "WordNet-3.0"),
}
SPEECH = ("noun", "verb", "adjective", "adverb")


@dataclass(frozen=True)
class Task:
    """The shipped lines of a task, and the same questions in other words for pre-training."""

    name: str
    kind: str
    train: list[Line]
    unlabeled: list[Line]
    test: list[Line]
    other: Callable[[Line, random.Random], tuple[str, str]] | None = None

    @property
    def about(self) -> dict[str, str]:
        """Return its entry in `tasks.json`."""
        title, source, licence = _ABOUT[self.name]
        return {"kind": self.kind, "title": title, "source": source, "licence": licence}

    @property
    def held(self) -> list[Line]:
        """Return the lines that training never uses."""
        return [*self.unlabeled, *self.test]


def build(inputs: Inputs) -> list[Task]:
    """Return all tasks, in the order of results."""
    synsets = list({synset.gloss: synset for synset in inputs.synsets()}.values())
    return [
        _scripture(inputs),
        _kinds(synsets),
        _speech(synsets),
        _reverse(synsets),
        _roman(),
        _past(synsets, inputs.past_tenses()),
    ]


def exchange(line: Line) -> tuple[str, str]:
    """Return the user's question in a line, and the assistant's answer."""
    if "prompt" in line:
        return line["prompt"], line["answer"]
    return line["question"], line["choices"][line["answer"]]


def _split(lines: Sequence[Any], seed: int, test: int = TEST) -> tuple[list[Any], ...]:
    """Return shuffled train, unlabeled and test lines."""
    mixed = list(lines)
    random.Random(seed).shuffle(mixed)
    return mixed[test + UNLABELED :], mixed[test : test + UNLABELED], mixed[:test]


# --- the tasks one by one -----------------------------------------------------------------------


def _scripture(inputs: Inputs) -> Task:
    """Return passages of about 300 bytes; each chapter is in one split only."""
    parts = _split(inputs.chapters(), 0, test=60)
    train, unlabeled, test = ([{"text": t} for c in part for t in _passages(c)] for part in parts)
    random.Random(1).shuffle(test)
    random.Random(2).shuffle(unlabeled)
    return Task("scripture", "perplexity", train, unlabeled[:UNLABELED], test[:TEXT_TEST])


def _passages(verses: Sequence[str], length: int = 240) -> list[str]:
    """Join consecutive verses into passages of sufficient length."""
    texts = [""]
    for verse in verses:
        if len(texts[-1]) >= length:
            texts.append("")
        texts[-1] = f"{texts[-1]} {verse}".strip()
    return [text for text in texts if length <= len(text) <= 2 * length]


def _kinds(synsets: Sequence[Synset]) -> Task:
    chosen = [synset for synset in synsets if synset.speech == "noun" and synset.lexname in KINDS]
    rng = random.Random(10)
    by_kind: dict[int, list[Synset]] = {}
    for synset in chosen:
        if 15 <= len(synset.gloss) <= 60:
            by_kind.setdefault(synset.lexname, []).append(synset)
    least = min(map(len, by_kind.values()))
    even = [synset for kind in by_kind.values() for synset in rng.sample(kind, least)]
    return Task("kinds", "choice", *_lines(even, 11, _kind, CHOICE_TEST), other=_kind_otherwise)


def _kind(synset: Synset, rng: random.Random) -> Line:
    right = KINDS[synset.lexname]
    wrong = rng.sample([kind for kind in KINDS.values() if kind != right], 3)
    return _choice(f"What is it? {synset.gloss}", right, wrong, rng)


def _kind_otherwise(line: Line, rng: random.Random) -> tuple[str, str]:
    gloss, answer = line["question"].partition("? ")[2], exchange(line)[1]
    ask = rng.choice(("{}. Is that a plant, a person or what?", "Name the class of: {}"))
    return ask.format(gloss), rng.choice(("It is of the class {}.", "some {}")).format(answer)


def _speech(synsets: Sequence[Synset]) -> Task:
    rng = random.Random(20)
    fit = [synset for synset in synsets if 15 <= len(synset.gloss) <= 60]
    even = [s for kind in SPEECH for s in rng.sample([e for e in fit if e.speech == kind], 2800)]
    return Task("speech", "choice", *_lines(even, 21, _part, CHOICE_TEST), other=_part_otherwise)


def _part(synset: Synset, rng: random.Random) -> Line:
    wrong = [part for part in SPEECH if part != synset.speech]
    return _choice(f"Which part of speech? {synset.gloss}", synset.speech, wrong, rng)


def _part_otherwise(line: Line, rng: random.Random) -> tuple[str, str]:
    gloss, answer = line["question"].partition("? ")[2], exchange(line)[1]
    ask = rng.choice(("{}. Noun, verb or what?", "Grammar of a word for: {}"))
    return ask.format(gloss), rng.choice(("The word is a {}.", "{}, says the dictionary")).format(
        answer
    )


def _reverse(synsets: Sequence[Synset]) -> Task:
    words = sorted({w for s in synsets for w in s.words if w.isalpha() and w.islower()})
    fit = [word for word in words if word.isascii() and 3 <= len(word) <= 6]
    return Task("reverse", "generation", *_lines(fit, 31, _backwards), other=_backwards_otherwise)


def _backwards(word: str, _: random.Random) -> Line:
    return _answered(f"Reverse the letters: {' '.join(word)}", " ".join(reversed(word)))


def _backwards_otherwise(line: Line, rng: random.Random) -> tuple[str, str]:
    letters, answer = line["prompt"].partition(": ")[2], line["answer"]
    ask = rng.choice(("Read {} from right to left", "{} in a mirror"))
    return ask.format(letters), rng.choice(("It reads {}.", "backwards: {}")).format(answer)


def _roman() -> Task:
    return Task(
        "roman", "generation", *_lines(range(1, 2000), 41, _numeral), other=_numeral_otherwise
    )


def _numeral(number: int, _: random.Random) -> Line:
    return _answered(f"Write {number} in Roman numerals.", roman(number))


def _numeral_otherwise(line: Line, rng: random.Random) -> tuple[str, str]:
    number, answer = line["prompt"].split()[1], line["answer"]
    ask = rng.choice(("How did the Romans write {}?", "The year {} on an old stone"))
    return ask.format(number), rng.choice(("They wrote {}.", "carved as {}")).format(answer)


def roman(number: int) -> str:
    """Return a number in Roman numerals."""
    written = ""
    steps = ((1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"))
    for value, letters in (*steps, (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")):
        written += letters * (number // value)
        number %= value
    return written


def _past(synsets: Sequence[Synset], irregular: dict[str, list[str]]) -> Task:
    words = sorted({w for s in synsets if s.speech == "verb" for w in s.words})
    fit = [w for w in words if w.isalpha() and w.islower() and w.isascii() and 3 <= len(w) <= 9]
    verbs = [(word, past(word, irregular.get(word, []))) for word in fit]
    return Task("past", "generation", *_lines(verbs, 51, _tense), other=_tense_otherwise)


def _tense(verb: tuple[str, str], _: random.Random) -> Line:
    return _answered(f"Past tense of the verb {verb[0]}?", verb[1])


def _tense_otherwise(line: Line, rng: random.Random) -> tuple[str, str]:
    verb, answer = line["prompt"].rstrip("?").split()[-1], line["answer"]
    ask = rng.choice(("Today they {}. And yesterday?", "{}, in a story of long ago"))
    return ask.format(verb), rng.choice(("Yesterday they {}.", "once we {}")).format(answer)


def past(verb: str, irregular: Sequence[str]) -> str:
    """Return the simple past from WordNet's exceptions, or by the rules of spelling."""
    forms = [form for form in irregular if not form.endswith(("ing", "s"))]
    if forms:
        return forms[0]
    if verb.endswith("e"):
        return f"{verb}d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ied"
    return f"{verb}ed"


def _lines(
    items: Sequence[Any],
    seed: int,
    line: Callable[[Any, random.Random], Line],
    test: int = TEST,
) -> tuple[list[Line], ...]:
    rng = random.Random(seed + 1)
    return tuple([line(item, rng) for item in part] for part in _split(items, seed, test))


def _choice(question: str, right: str, wrong: Sequence[str], rng: random.Random) -> Line:
    choices = [right, *wrong]
    rng.shuffle(choices)
    return {"question": question, "choices": choices, "answer": choices.index(right)}


def _answered(prompt: str, answer: str) -> Line:
    return {"prompt": prompt, "answer": answer}
