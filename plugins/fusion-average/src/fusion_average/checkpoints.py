"""The checkpoints in the directory of a training run, found and ordered by their step numbers."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

#: `checkpoint-1000`, `step_1000`, `iter_0001000`, `global_step1000`, `epoch=1-step=1000`, `1000`.
_STEP = re.compile(
    r"(?:.*[^a-z])?(?:global_?)?(?:steps?|iter(?:ation)?|checkpoint|ckpt)[-_=]?(\d{1,15})(?!\d).*",
    re.IGNORECASE | re.DOTALL,
)
_SUFFIX = ".safetensors"
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint of a run."""

    step: int
    path: Path

    @property
    def name(self) -> str:
        """The name of the model in a recipe."""
        return f"step-{self.step}"


def find_checkpoints(run: Path, pattern: str = "*") -> list[Checkpoint]:
    """Return the checkpoints in a directory by step: directories and .safetensors files.

    `pattern` restricts their names. Raises `CheckpointError` for a directory without checkpoints,
    and for two checkpoints of one step.
    """
    if not run.is_dir():
        problem = "expected the directory of a run, found a file" if run.exists() else "missing"
        raise CheckpointError(f"{problem}: {run}")
    entries = sorted(entry for entry in run.iterdir() if fnmatchcase(entry.name, pattern))
    checkpoints = [
        Checkpoint(step, entry)
        for entry in entries
        if (entry.is_dir() or entry.suffix == _SUFFIX) and (step := _step_of(entry)) is not None
    ]
    if not checkpoints:
        names = ", ".join(entry.name for entry in entries[:_SHOWN]) or "nothing"
        raise CheckpointError(
            f"{run} holds no checkpoints with step numbers; it holds {names}",
            hint="Expected directories such as checkpoint-1000, step_1000 or iter_0001000, or "
            "files such as step-1000.safetensors.",
        )
    checkpoints.sort(key=lambda checkpoint: checkpoint.step)
    for one, other in pairwise(checkpoints):
        if one.step == other.step:
            raise CheckpointError(
                f"{run}: {one.path.name} and {other.path.name} are both of step {one.step}",
                hint="Select one kind of name: --match 'checkpoint-*'.",
            )
    return checkpoints


def select_checkpoints(
    checkpoints: Sequence[Checkpoint],
    *,
    window: tuple[int | None, int | None] = (None, None),
    every: int | None = None,
    last: int | None = None,
    allow_gaps: bool = False,
) -> list[Checkpoint]:
    """Return the checkpoints of a window, `every` steps counted from its end, and the last ones.

    Raises `CheckpointError` if none or too few remain, and for missing steps: those that `every`
    asks for, and gaps in a run that saves at even steps.
    """
    begin, end = window
    selected = [
        checkpoint
        for checkpoint in checkpoints
        if (begin is None or checkpoint.step >= begin) and (end is None or checkpoint.step <= end)
    ]
    if not selected:
        raise CheckpointError(
            f"no checkpoints in --window {_spell(begin)}:{_spell(end)}",
            hint=f"The run has the steps {checkpoints[0].step} to {checkpoints[-1].step}.",
        )
    spacing = usual_spacing(checkpoint.step for checkpoint in checkpoints)
    if every is not None:
        final, spacing = selected[-1].step, every
        selected = [checkpoint for checkpoint in selected if (final - checkpoint.step) % every == 0]
    if last is not None:
        if last > len(selected):
            raise CheckpointError(
                f"expected {last} checkpoints, found {len(selected)}: {_list_steps(selected)}",
                hint=f"Use --last {len(selected)}, or select more.",
            )
        selected = selected[-last:]
    missing = [*_missing_steps([checkpoint.step for checkpoint in selected], spacing)]
    if missing and not allow_gaps:
        shown = ", ".join(map(str, missing[:_SHOWN])) + (", ..." if missing[_SHOWN:] else "")
        raise CheckpointError(
            f"missing checkpoints: the run saves every {spacing} steps, and there are none of "
            f"{'step' if len(missing) == 1 else 'the steps'} {shown}",
            hint="Restore them, select others by --window, or average without them: --allow-gaps.",
        )
    return selected


def usual_spacing(steps: Iterable[int]) -> int | None:
    """Return the difference that most neighbouring steps have, or None if there is none."""
    gaps = Counter(after - before for before, after in pairwise(steps))
    if not gaps:
        return None
    (spacing, count), *_ = gaps.most_common(1)
    return spacing if 2 * count > gaps.total() else None


def _missing_steps(steps: Sequence[int], spacing: int | None) -> Iterator[int]:
    if spacing is not None:
        for before, after in pairwise(steps):
            yield from range(before + spacing, after, spacing)


def _step_of(entry: Path) -> int | None:
    """Return the step number in a name; temporary names have none."""
    name = entry.name.removesuffix(_SUFFIX)
    if name.startswith((".", "tmp")) or name.endswith((".tmp", "-tmp", "_tmp")):
        return None
    match = _STEP.fullmatch(name)
    if match is not None:
        return int(match[1])
    return int(name) if name.isascii() and name.isdecimal() else None


def _list_steps(selected: Sequence[Checkpoint]) -> str:
    return ", ".join(str(checkpoint.step) for checkpoint in selected)


def _spell(step: int | None) -> str:
    return "" if step is None else str(step)
