"""Measure whole programs from outside: processes, floors, and tables.

Nothing here imports torch, because a child's peak memory begins with its parent's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MB = 1_000_000
_BUFFER = os.urandom(16 * MB)


@dataclass(frozen=True)
class Usage:
    """The cost of a process; `read` counts bytes from the disk, not from the page cache."""

    seconds: float
    cpu: float
    peak: int = 0
    read: int = 0


class Measures:
    """Processes that ran in a directory, with the cost of each.

    The first word of a label is the program. Its `start-up` is subtracted.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.taken: dict[str, list[Usage]] = defaultdict(list)

    def measure(self, label: str, command: Sequence[str], **environment: str) -> None:
        """Sync the disks, run a command with further variables, and record its cost."""
        os.sync()
        started = time.perf_counter()
        with (self.directory / "log").open("w") as log:
            variables = {**os.environ, **environment}
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=variables)
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if os.waitstatus_to_exitcode(status):
            sys.exit(f"{label} failed: {' '.join(command)}\n{(self.directory / 'log').read_text()}")
        cpu = usage.ru_utime + usage.ru_stime
        taken = Usage(seconds, cpu, usage.ru_maxrss * 1024, usage.ru_inblock * 512)
        self.taken[label].append(taken)

    def fuse_run(
        self, program: str, name: str, recipe: Mapping[str, Any], *flags: str, **environment: str
    ) -> None:
        """Measure `fuse run` on a recipe, and its start-up, with further variables."""
        fuse = str(Path(sys.executable).with_name("fuse"))
        command = [fuse, "run", self.recipe(recipe), "-q", *flags, "-o", self.emptied("ours")]
        self.measure(f"start-up {program}", [*command, "--print-config"])
        self.measure(f"{program} {name}", command, **environment)

    def floor(self, name: str, models: Iterable[str]) -> None:
        """Measure the floor: read models, and write and sync as many bytes as the output."""
        files = [str(path) for model in models for path in Path(model).glob("*.safetensors")]
        self.copy(f"floor {name}", files)

    def copy(self, label: str, files: Sequence[str] = ()) -> None:
        """Read files, write and sync as many bytes as the output has, and record the cost."""
        size = size_of(self.directory / "ours")
        os.sync()
        started, cpu = time.perf_counter(), sum(os.times()[:4])
        subprocess.run(
            ["cat", *files], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True
        )
        self._write(size)
        seconds = time.perf_counter() - started
        self.taken[label].append(Usage(seconds, sum(os.times()[:4]) - cpu))
        (self.directory / "floor").unlink()

    def _write(self, size: int) -> None:
        descriptor = os.open(self.directory / "floor", os.O_WRONLY | os.O_CREAT)
        while size > 0:
            size -= os.write(descriptor, _BUFFER[: min(size, len(_BUFFER))])
        os.fsync(descriptor)
        os.close(descriptor)

    def recipe(self, content: Mapping[str, Any]) -> str:
        """Write a recipe, and return its path."""
        path = self.directory / "recipe.yaml"  # JSON is YAML
        path.write_text(json.dumps(content))
        return str(path)

    def emptied(self, name: str) -> str:
        """Return the path of an output, after deleting it."""
        shutil.rmtree(self.directory / name, ignore_errors=True)
        return str(self.directory / name)

    def seconds(self, label: str) -> float:
        """Return the best wall time of a label, minus its program's start-up."""
        return self._best(label, "seconds")

    def cpu(self, label: str) -> float:
        """Return the best processor time of a label, minus its program's start-up."""
        return self._best(label, "cpu")

    def _best(self, label: str, what: str) -> float:
        start = self.taken.get(f"start-up {label.partition(' ')[0]}", ())
        least = min((getattr(usage, what) for usage in start), default=0.0)
        return float(min(getattr(usage, what) for usage in self.taken[label]) - least)

    def start_up(self, program: str) -> float:
        """Return the least start-up time of a program."""
        return min(usage.seconds for usage in self.taken[f"start-up {program}"])

    def peak(self, label: str) -> int:
        """Return the highest peak memory of a label, in bytes."""
        return max(usage.peak for usage in self.taken[label])

    def dump(self, path: Path) -> None:
        """Write all measurements to a file."""
        taken = {label: [vars(usage) for usage in usages] for label, usages in self.taken.items()}
        path.write_text(json.dumps(taken, indent=1))


def child(program: Path, *arguments: str) -> str:
    """Run a Python program and return its output; exit with its stderr if it fails."""
    command = [sys.executable, str(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.strip()


def row(cells: Iterable[str]) -> str:
    """Return a row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def headings(cells: Sequence[str]) -> str:
    """Return the first two rows of a table."""
    return f"{row(cells)}\n{row('---' for _ in cells)}"


def size_of(directory: Path) -> int:
    """Return the total size of the files in a directory, in bytes."""
    return sum(path.stat().st_size for path in directory.iterdir())
