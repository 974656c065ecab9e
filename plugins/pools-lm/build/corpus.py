"""Read public texts from Debian packages.

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
    """A synset: its words, part of speech, lexicographer's file, gloss and examples."""

    words: tuple[str, ...]
    speech: str
    lexname: int
    gloss: str
    examples: tuple[str, ...]

    @property
    def entry(self) -> str:
        """Return a line in the format of a dictionary."""
        examples = "".join(f' "{example}."' for example in self.examples)
        return f"{', '.join(self.words)}: {self.gloss}.{examples}"


@dataclass(frozen=True)
class Inputs:
    """The root of the unpacked packages; `/` if they are installed."""

    root: Path

    def synsets(self) -> list[Synset]:
        """Return all synsets of WordNet, in the order of its files."""
        folder = self.root / "usr/share/wordnet"
        synsets = []
        for suffix, speech in _POS.items():
            lines = (folder / f"data.{suffix}").read_text(encoding="latin-1").splitlines()
            synsets += [_synset(line, speech) for line in lines if not line.startswith("  ")]
        return synsets

    def past_tenses(self) -> dict[str, list[str]]:
        """Return WordNet's irregular verb forms by lemma."""
        forms: dict[str, list[str]] = {}
        for line in (self.root / "usr/share/wordnet/verb.exc").read_text().splitlines():
            form, lemma = line.split()[:2]
            forms.setdefault(lemma, []).append(form)
        return forms

    def chapters(self) -> list[list[str]]:
        """Return the verses of the King James Bible by chapter, in order."""
        command = [self.root / "usr/bin/bible", "-f", "-l", "100000"]
        command += ["-p", f"{self.root}/usr/lib/", "gen1:1-rev22:21"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        chapters: dict[tuple[str, str], list[str]] = {}
        for line in done.stdout.splitlines():
            if match := _VERSE.match(line):
                chapters.setdefault((match[1], match[2]), []).append(match[4].strip())
        return list(chapters.values())

    def jargon(self) -> list[str]:
        """Return the entries of the Jargon File."""
        return _paragraphs(self._dictionary("jargon"))

    def devil(self) -> list[str]:
        """Return the entries of The Devil's Dictionary."""
        return _paragraphs(self._dictionary("devil"))

    def copyright(self, package: str) -> str:
        """Return a package's copyright file."""
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
    """Yield paragraphs of sufficient length on one line each, without cross-reference braces."""
    blocks = re.split(r"\n\s*\n", text)
    flat = (" ".join(block.replace("{", "").replace("}", "").split()) for block in blocks)
    return [block for block in flat if len(block) >= 80]
