"""Checks on damaged files: a format must refuse them by name, quickly and in little memory.

One child process opens and reads all damaged copies, so the suite notices crashes, hangs and memory
use.
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
from fusion_testing._format_child import TIMEOUT
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fusion_core.contracts.specs import FormatSpec
    from fusion_core.weights import WeightSource

    #: Damages the sound model in a directory.
    Damage = Callable[[Path], object]

_MAX_SECONDS = 2
_MAX_MEMORY = 256 * 2**20
#: Random changes of each file of a model.
_MUTANTS = 60
#: Bytes at the beginning and end of a file where headers usually are.
_HEADER = 512
_REMEDY = (
    "Validate a header before using it. FileSource validates names, shapes and offsets, and limits "
    "the size of a header."
)


@dataclass(frozen=True)
class Outcome:
    """The result of opening and reading a damaged model."""

    #: "refused", "read", or the name of an unexpected error
    how: str
    #: the error's message, or a digest of the values read
    detail: str
    seconds: float
    memory: int


class DamageChecks(SpecSuite):
    """Checks on damaged files; part of `FormatSuite`."""

    @pytest.fixture
    def hostile(self) -> Mapping[str, Damage]:
        """Return further damage: functions by name that damage the model in a directory."""
        return {}

    def test_a_truncated_file_is_refused(
        self, spec: FormatSpec, base: WeightSource | None, model: Path
    ) -> None:
        """A truncated file is an error that names the file, wherever it was cut."""
        damage = {
            f"{name} truncated to {size} bytes": _truncate(name, size)
            for name in _files(model)
            for size in _sizes((model / name).stat().st_size)
        }
        outcomes = _outcomes(spec, base, model, {"sound": lambda _: None, **damage})
        whole = outcomes.pop("sound")
        for name, outcome in outcomes.items():
            if outcome.how == "read" and outcome.detail != whole.detail:
                fail(f"expected an error for {name}, but wrong values were read.", _REMEDY)

    def test_damaged_files_are_refused_soon(
        self,
        spec: FormatSpec,
        base: WeightSource | None,
        model: Path,
        hostile: Mapping[str, Damage],
    ) -> None:
        """Random bytes, lengths and shapes cost at most 2 seconds and 256 MB, and no crash."""
        damage: dict[str, Damage] = {}
        for name in _files(model):
            damage[f"{name} of random bytes"] = _randomise(name)
            damage[f"{name} as a pipe"] = _replace_by_pipe(name)
            for seed in range(_MUTANTS):
                damage[f"{name} with change {seed}"] = _mutate(name, seed)
        outcomes = _outcomes(spec, base, model, {**damage, **hostile})
        for name in (*hostile, *(f"{file} as a pipe" for file in _files(model))):
            if outcomes[name].how == "read":
                fail(f"expected an error for a hostile model, but it was read: {name}.", _REMEDY)

    def test_a_link_out_of_the_model_is_refused(
        self, spec: FormatSpec, base: WeightSource | None, model: Path
    ) -> None:
        """A link to a file outside the model is an error: models may come from strangers."""
        outcomes = _outcomes(
            spec, base, model, {name: _link_outside(name) for name in _files(model)}
        )
        for name, outcome in outcomes.items():
            if outcome.how == "read":
                fail(
                    f"expected an error because {name} links to a file outside the model, but it "
                    "was read.",
                    "Open files with FileSource.open, and configurations with read_config.",
                )


def _outcomes(
    spec: FormatSpec, base: WeightSource | None, model: Path, damage: Mapping[str, Damage]
) -> dict[str, Outcome]:
    """Damage copies of a model and read them in a child process.

    Fails for crashes, hangs, unexpected errors, and too much time or memory.
    """
    if not Path("/proc/self/status").is_file():
        pytest.skip("this system does not report the memory of a process")
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
        if done.returncode == -signal.SIGALRM:
            fail(f"reading a damaged model took more than {TIMEOUT} seconds: {name}.", _REMEDY)
        stderr = done.stderr.decode(errors="replace").strip()[-1000:]
        fail(
            f"reading a damaged model ended the process with code {done.returncode}: {name}. "
            f"{stderr}",
            _REMEDY,
        )
    for name, outcome in outcomes.items():
        _check(name, outcome, paths[name])
    return outcomes


def _check(name: str, outcome: Outcome, path: str) -> None:
    if outcome.how not in {"read", "refused"}:
        fail(
            f"expected a CheckpointError for a damaged model, got {outcome.how}: {outcome.detail} "
            f"({name})",
            "Raise CheckpointError for invalid files. FileSource converts the errors of "
            "`find_tensors`.",
        )
    if outcome.how == "refused" and path not in outcome.detail:
        fail(
            f"the error does not name the file: {outcome.detail} ({name})",
            "Begin the message with the file's path.",
        )
    if outcome.seconds > _MAX_SECONDS:
        fail(
            f"reading a damaged model took {outcome.seconds:.1f} seconds, expected at most "
            f"{_MAX_SECONDS}: {name}.",
            _REMEDY,
        )
    if outcome.memory > _MAX_MEMORY:
        fail(
            f"reading a damaged model took {outcome.memory >> 20} MB of memory, expected at most "
            f"{_MAX_MEMORY >> 20}: {name}.",
            _REMEDY,
        )


def _files(model: Path) -> list[str]:
    return sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())


def _sizes(size: int) -> Iterator[int]:
    rng = random.Random(size)  # noqa: S311 - not a secret
    sizes = {0, 1, 8, 16, size // 4, size // 2, size - 1, *(rng.randrange(size) for _ in range(12))}
    yield from (length for length in sorted(sizes) if length < size)


def _truncate(name: str, size: int) -> Damage:
    return lambda model: os.truncate(model / name, size)


def _link_outside(name: str) -> Damage:
    def link(model: Path) -> None:
        outside = model.parent / "outside"
        (model / name).rename(outside)
        (model / name).symlink_to(outside)

    return link


def _replace_by_pipe(name: str) -> Damage:
    def replace(model: Path) -> None:
        (model / name).unlink()
        os.mkfifo(model / name)

    return replace


def _randomise(name: str) -> Damage:
    def replace(model: Path) -> None:
        size = (model / name).stat().st_size
        (model / name).write_bytes(random.Random(0).randbytes(size))  # noqa: S311 - not a secret

    return replace


def _mutate(name: str, seed: int) -> Damage:
    def change(model: Path) -> None:
        rng = random.Random(seed)  # noqa: S311 - not a secret
        content = bytearray((model / name).read_bytes())
        size = len(content)
        nearby = rng.randrange(min(size, _HEADER))
        offset = rng.choice((nearby, size - 1 - nearby, rng.randrange(size)))
        count = rng.choice((1, 2, 4, 8))
        values = rng.choice((b"\xff", b"\x7f", b"9", b"\0", rng.randbytes(1)))
        if rng.random() < 0.5:  # noqa: PLR2004 - change a digit half of the time, if there is one
            digits = [n for n, byte in enumerate(content) if chr(byte).isdecimal()]
            offset = rng.choice(digits or [offset])
        match rng.randrange(4):
            case 0:
                del content[offset : offset + count]
            case 1:
                content[offset:offset] = values * count
            case _:
                content[offset : offset + count] = values * count
        (model / name).write_bytes(content)

    return change
