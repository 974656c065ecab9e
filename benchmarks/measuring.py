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
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

MB = 1_000_000
_BUFFER = os.urandom(16 * MB)
#: Holds memory of a size, says so, and gives it back after some seconds.
_HOLD = """
import mmap, sys, time
flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
held = mmap.mmap(-1, int(sys.argv[1]), flags=flags)
print(flush=True)
time.sleep(float(sys.argv[2]))
"""
#: Seconds before the end of a start-up in which memory is given back: fewer than a host waits for.
_MARGIN = 1.0


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
        #: the bytes of an output, or 0 before they are known
        self.output = 0

    def measure(self, label: str, command: Sequence[str], **environment: str) -> None:
        """Sync the disks, run a command with further variables, and record its cost."""
        os.sync()
        start_up = self.start_up(label.partition(" ")[0])
        writes = self.output > 0 and start_up > 0
        memory = self._memory_in_use(max(0.0, start_up - _MARGIN)) if writes else nullcontext()
        with memory, (self.directory / "log").open("w") as log:
            started = time.perf_counter()
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
        self.output = size_of(self.directory / "ours")

    def floor(self, name: str, models: Iterable[str]) -> None:
        """Measure the floor: read models, and write and sync as many bytes as the output."""
        files = [str(path) for model in models for path in Path(model).glob("*.safetensors")]
        self.copy(f"floor {name}", files)

    def copy(self, label: str, files: Sequence[str] = ()) -> None:
        """Read files, write and sync as many bytes as the output has, and record the cost."""
        os.sync()
        with self._memory_in_use():
            pass
        started, cpu = time.perf_counter(), sum(os.times()[:4])
        subprocess.run(
            ["cat", *files], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True
        )
        self._write(self.output)
        seconds = time.perf_counter() - started
        self.taken[label].append(Usage(seconds, sum(os.times()[:4]) - cpu))
        (self.directory / "floor").unlink()

    @contextmanager
    def _memory_in_use(self, seconds: float = 0.0) -> Iterator[None]:
        """Have memory of the output's size in use until some seconds from now.

        The host of a virtual machine takes back memory that is free for two seconds. To write a
        file into what it gives again can take ten times as long. Programs with a start-up would pay
        for that, and the floor would not.
        """
        command = [sys.executable, "-c", _HOLD, str(self.output), str(seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            yield

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
        least = min(getattr(usage, what) for usage in self.taken[label])
        return float(least - self.start_up(label.partition(" ")[0], what))

    def start_up(self, program: str, what: str = "seconds") -> float:
        """Return a program's least start-up time, or another of its least costs; 0 if unknown."""
        taken = self.taken.get(f"start-up {program}", ())
        return min((getattr(usage, what) for usage in taken), default=0.0)

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
