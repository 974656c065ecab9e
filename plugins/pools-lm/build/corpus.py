"""Public texts, read from what Debian packages install.

WordNet 3.0 (`wordnet-base`), the King James Bible (`bible-kjv`, `bible-kjv-text`), the Jargon File
(`dict-jargon`) and The Devil's Dictionary (`dict-devil`).
"""

from __future__ import annotations

import gzip
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = ("wordnet-base", "bible-kjv", "bible-kjv-text", "dict-jargon", "dict-devil")
_POS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
_VERSE = re.compile(r"^(\d?[A-Za-z]+)(\d+):(\d+) (.*)$")


@dataclass(frozen=True)
class Synset:
    """A meaning: its words, part of speech, lexicographer's file, gloss and examples."""

    words: tuple[str, ...]
    speech: str
    lexname: int
    gloss: str
    examples: tuple[str, ...]

    @property
    def entry(self) -> str:
        """A line as a dictionary has it."""
        examples = "".join(f' "{example}."' for example in self.examples)
        return f"{', '.join(self.words)}: {self.gloss}.{examples}"


@dataclass(frozen=True)
class Inputs:
    """Where the packages are unpacked: `/` where they are installed."""

    root: Path

    def synsets(self) -> list[Synset]:
        """Every synset of WordNet, in the files' order."""
        folder = self.root / "usr/share/wordnet"
        found = []
        for suffix, speech in _POS.items():
            lines = (folder / f"data.{suffix}").read_text(encoding="latin-1").splitlines()
            found += [_synset(line, speech) for line in lines if not line.startswith("  ")]
        return found

    def past_tenses(self) -> dict[str, list[str]]:
        """The irregular forms of verbs, as WordNet lists them, by lemma."""
        forms: dict[str, list[str]] = {}
        for line in (self.root / "usr/share/wordnet/verb.exc").read_text().splitlines():
            form, lemma = line.split()[:2]
            forms.setdefault(lemma, []).append(form)
        return forms

    def chapters(self) -> list[list[str]]:
        """The King James Bible: verses by chapter, in order."""
        command = [self.root / "usr/bin/bible", "-f", "-l", "100000"]
        command += ["-p", f"{self.root}/usr/lib/", "gen1:1-rev22:21"]
        said = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        chapters: dict[tuple[str, str], list[str]] = {}
        for line in said.stdout.splitlines():
            if match := _VERSE.match(line):
                chapters.setdefault((match[1], match[2]), []).append(match[4].strip())
        return list(chapters.values())

    def jargon(self) -> list[str]:
        """The Jargon File's entries."""
        return _paragraphs(self._dictionary("jargon"))

    def devil(self) -> list[str]:
        """The Devil's Dictionary's entries."""
        return _paragraphs(self._dictionary("devil"))

    def copyright(self, package: str) -> str:
        """A package's copyright file."""
        return (self.root / f"usr/share/doc/{package}/copyright").read_text(encoding="utf-8")

    def _dictionary(self, name: str) -> str:
        path = self.root / f"usr/share/dictd/{name}.dict.dz"
        return gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")


def _synset(line: str, speech: str) -> Synset:
    fields, _, text = line.partition(" | ")
    parts = fields.split()
    count = int(parts[3], 16)
    words = (re.sub(r"\(\w+\)$", "", word) for word in parts[4 : 4 + 2 * count : 2])
    gloss, _, rest = text.strip().partition('; "')
    examples = re.findall(r'"([^"]+)"', f'"{rest}') if rest else []
    return Synset(
        tuple(word.replace("_", " ") for word in words),
        speech,
        int(parts[1]),
        gloss.strip(" ;"),
        tuple(examples),
    )


def _paragraphs(text: str) -> list[str]:
    """Paragraphs of some length, each on one line, without the cross-references' braces."""
    blocks = re.split(r"\n\s*\n", text)
    flat = (" ".join(block.replace("{", "").replace("}", "").split()) for block in blocks)
    return [block for block in flat if len(block) >= 80]
