"""Checks of a format's damaged files: refused by name, soon, in little memory.

Every damaged copy is opened and read in one child process, so that a signal, a hang and memory are
seen for what they are.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fusion_testing._component import SpecSuite
from fusion_testing._format_child import PATIENCE
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fusion_core.contracts.specs import FormatSpec
    from fusion_core.weights import WeightSource

    #: Makes a directory hostile in which a sound model lies.
    Damage = Callable[[Path], object]

_MOST_SECONDS = 2
_MOST_MEMORY = 256 * 2**20
#: Random changes of each file of a model.
_MUTANTS = 60
#: Where headers are as a rule: at a file's beginning, or its end.
_NEAR = 512
_REMEDY = (
    "Check what a header says before you believe it. FileSource does most of that: names, shapes, "
    "places, and how much of a header is read."
)


@dataclass(frozen=True)
class Outcome:
    """The result of opening and reading a damaged model."""

    #: "refused", "read", or what was raised
    how: str
    #: the error's text, or a digest of the values that were read
    what: str
    seconds: float
    memory: int


class DamageChecks(SpecSuite):
    """What a format does with damaged files; a part of `FormatSuite`."""

    @pytest.fixture
    def hostile(self) -> Mapping[str, Damage]:
        """Return further damage by name: functions that change a sound model into a hostile one."""
        return {}

    def test_a_truncated_file_is_refused(
        self, spec: FormatSpec, base: WeightSource | None, model: Path
    ) -> None:
        """A file that was not copied whole is an error that names it, whatever is missing."""
        damage = {
            f"{name} cut to {size} bytes": _truncating(name, size)
            for name in _files(model)
            for size in _sizes((model / name).stat().st_size)
        }
        outcomes = _outcomes(spec, base, model, {"as it was": _nothing, **damage})
        whole = outcomes.pop("as it was")
        for name, outcome in outcomes.items():
            if outcome.how == "read" and outcome.what != whole.what:
                fail(f"{name} is read, with other values.", _REMEDY)

    def test_damaged_files_are_refused_soon(
        self,
        spec: FormatSpec,
        base: WeightSource | None,
        model: Path,
        hostile: Mapping[str, Damage],
    ) -> None:
        """Random bytes, absurd lengths and shapes cost no more than 2 seconds and 256 MB."""
        damage: dict[str, Damage] = {}
        for name in _files(model):
            damage[f"{name} of random bytes"] = _noise(name)
            damage[f"{name} as a pipe"] = _pipe(name)
            for seed in range(_MUTANTS):
                damage[f"{name} with change {seed}"] = _mutation(name, seed)
        outcomes = _outcomes(spec, base, model, {**damage, **hostile})
        for name in (*hostile, *(f"{file} as a pipe" for file in _files(model))):
            if outcomes[name].how == "read":
                fail(f"a model is read although it is hostile: {name}.", _REMEDY)

    def test_a_link_out_of_the_model_is_refused(
        self, spec: FormatSpec, base: WeightSource | None, model: Path
    ) -> None:
        """A model from anywhere may not name files beside it."""
        outcomes = _outcomes(spec, base, model, {name: _linking(name) for name in _files(model)})
        for name, outcome in outcomes.items():
            if outcome.how == "read":
                fail(
                    f"{name} may be a link to a file outside the model.",
                    "Open files by FileSource.open, and configurations by read_config.",
                )


def _outcomes(
    spec: FormatSpec, base: WeightSource | None, model: Path, damage: Mapping[str, Damage]
) -> dict[str, Outcome]:
    """Damage copies of a model and read them in a child process; fails for what none may do."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("this system does not say what memory a process takes")
    folder = model.parent / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    paths: dict[str, str] = {}
    for number, (name, change) in enumerate(damage.items()):
        copy = folder / str(number) / "model"
        shutil.copytree(model, copy)
        change(copy)
        paths[name] = str(copy)
    done = subprocess.run(
        [sys.executable, "-c", "from fusion_testing._format_child import main; main()"],
        input=pickle.dumps((spec, base, list(paths.values()))),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        check=False,
    )
    lines = [Outcome(**json.loads(line)) for line in done.stdout.splitlines()]
    outcomes = dict(zip(paths, lines, strict=False))
    if len(outcomes) < len(paths):
        name = [*paths][len(outcomes)]
        said = done.stderr.decode(errors="replace").strip()[-1000:]
        if done.returncode == -signal.SIGALRM:
            fail(f"a damaged model takes more than {PATIENCE} seconds: {name}.", _REMEDY)
        fail(f"a damaged model ended the process ({done.returncode}): {name}. {said}", _REMEDY)
    for name, outcome in outcomes.items():
        _check(name, outcome, paths[name])
    return outcomes


def _check(name: str, outcome: Outcome, path: str) -> None:
    if outcome.how not in {"read", "refused"}:
        fail(
            f"a damaged model raises {outcome.how}: {outcome.what} ({name})",
            "Raise CheckpointError for what a file may hold. FileSource turns what `find_tensors` "
            "raises into one.",
        )
    if outcome.how == "refused" and path not in outcome.what:
        fail(
            f"the error does not name the file: {outcome.what} ({name})",
            "Begin the message with the file's path.",
        )
    if outcome.seconds > _MOST_SECONDS:
        fail(f"a damaged model takes {outcome.seconds:.1f} seconds: {name}.", _REMEDY)
    if outcome.memory > _MOST_MEMORY:
        fail(f"a damaged model takes {outcome.memory >> 20} MB of memory: {name}.", _REMEDY)


def _files(model: Path) -> list[str]:
    return sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())


def _sizes(size: int) -> Iterator[int]:
    rng = random.Random(size)  # noqa: S311 - no secret
    some = {0, 1, 8, 16, size // 4, size // 2, size - 1, *(rng.randrange(size) for _ in range(12))}
    yield from (each for each in sorted(some) if each < size)


def _nothing(model: Path) -> None:
    del model


def _truncating(name: str, size: int) -> Damage:
    return lambda model: os.truncate(model / name, size)


def _linking(name: str) -> Damage:
    def link(model: Path) -> None:
        outside = model.parent / "outside"
        (model / name).rename(outside)
        (model / name).symlink_to(outside)

    return link


def _pipe(name: str) -> Damage:
    def replace(model: Path) -> None:
        (model / name).unlink()
        os.mkfifo(model / name)

    return replace


def _noise(name: str) -> Damage:
    def replace(model: Path) -> None:
        size = (model / name).stat().st_size
        (model / name).write_bytes(random.Random(0).randbytes(size))  # noqa: S311 - no secret

    return replace


def _mutation(name: str, seed: int) -> Damage:
    def change(model: Path) -> None:
        rng = random.Random(seed)  # noqa: S311 - no secret
        content = bytearray((model / name).read_bytes())
        size = len(content)
        nearby = rng.randrange(min(size, _NEAR))
        place = rng.choice((nearby, size - 1 - nearby, rng.randrange(size)))
        count = rng.choice((1, 2, 4, 8))
        numbers = rng.choice((b"\xff", b"\x7f", b"9", b"\0", rng.randbytes(1)))
        if rng.random() < 0.5:  # noqa: PLR2004 - as often as not, digits where there are some
            digits = [n for n, byte in enumerate(content) if chr(byte).isdecimal()]
            place = rng.choice(digits or [place])
        match rng.randrange(4):
            case 0:
                del content[place : place + count]
            case 1:
                content[place:place] = numbers * count
            case _:
                content[place : place + count] = numbers * count
        (model / name).write_bytes(content)

    return change
