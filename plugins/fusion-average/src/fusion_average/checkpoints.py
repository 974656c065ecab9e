"""The checkpoints in the directory of a training run, found and ordered by their step numbers."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from itertools import pairwise
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

#: `checkpoint-1000`, `step_1000`, `iter_0001000`, `global_step1000`, `epoch=1-step=1000`, `1000`.
_STEP = re.compile(
    r"((?:.*[^a-z])?(?:global_?)?(?:steps?|iter(?:ation)?|checkpoint|ckpt)[-_=]?)"
    r"(\d{1,15})(?!\d)(.*)",
    re.IGNORECASE | re.DOTALL,
)
#: Numbers around a step, such as an epoch or a loss, which differ in the names of one run.
_OTHER_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", re.IGNORECASE)
#: A stage or an epoch in a name, with its number.
_STAGE = re.compile(r"(?:stage|phase|epoch|part|round|ingredient)s?[-_= ]?(\d+)", re.IGNORECASE)
#: What follows digits that are only the beginning of a number, such as `1e3` or `300.5`.
_FRACTIONS = ("e#", "E#", ".#")
_SUFFIX = ".safetensors"
_SHOWN = 5
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint of a run."""

    step: int
    path: Path

    @property
    def name(self) -> str:
        """The name of the model in a recipe."""
        return f"step-{self.step}"


@dataclass(frozen=True, slots=True)
class _Form:
    """The text before and after the step in a name; `#` stands for other numbers."""

    before: str
    after: str


def find_checkpoints(run: Path, pattern: str = "*") -> list[Checkpoint]:
    """Return the checkpoints in a directory by step: directories and .safetensors files.

    `pattern` restricts their names. Most names decide the form: the text before and after the
    step. A warning lists step numbers in names of other forms. Raises `CheckpointError` for a
    directory without checkpoints, two equally frequent forms, and two checkpoints of one step.
    """
    if not run.is_dir():
        problem = "expected the directory of a run, found a file" if run.exists() else "missing"
        raise CheckpointError(f"{problem}: {run}")
    entries = sorted(entry for entry in run.iterdir() if fnmatchcase(entry.name, pattern))
    forms: dict[_Form, list[Checkpoint]] = {}
    for entry in entries:
        is_broken = entry.is_symlink() and not entry.exists()
        is_model = entry.is_dir() or entry.suffix == _SUFFIX or is_broken
        if is_model and (name := _parse_name(entry)) is not None:
            form, step = name
            forms.setdefault(form, []).append(Checkpoint(step, entry))
    checkpoints = _take_usual_form(run, forms)
    if not checkpoints:
        names = ", ".join(entry.name for entry in entries[:_SHOWN]) or "nothing"
        raise CheckpointError(
            f"{run} holds no checkpoints with step numbers; it holds {names}",
            hint="Expected directories such as checkpoint-1000, step_1000 or iter_0001000, or "
            "files such as step-1000.safetensors.",
        )
    checkpoints.sort(key=lambda checkpoint: checkpoint.step)
    _check_order(run, checkpoints)
    return checkpoints


def _check_order(run: Path, checkpoints: Sequence[Checkpoint]) -> None:
    """Raise `CheckpointError` for a broken link, equal steps, and steps that start again."""
    for path in (checkpoint.path for checkpoint in checkpoints):
        if not path.exists():
            raise CheckpointError(
                f"{path} is a link to {path.readlink()}, which does not exist",
                hint="Restore the checkpoint, or leave it out by --match.",
            )
    for one, other in pairwise(checkpoints):
        kinds = [_spell_beginning(checkpoint) for checkpoint in (one, other)]
        if one.step == other.step:
            select = f"Select one kind of name: --match '{kinds[1]}*'."
            raise CheckpointError(
                f"{run}: {one.path.name} and {other.path.name} are both of step {one.step}",
                hint=select if kinds[0] != kinds[1] else "Move one of them away.",
            )
        if _read_stage(one) > _read_stage(other):
            raise CheckpointError(
                f"{run}: steps start again: {one.path.name} has a smaller step than "
                f"{other.path.name}, which is of an earlier stage or epoch",
                hint=f"Select one of them: --match '{kinds[0]}*'.",
            )


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
    first, final = selected[0].step, selected[-1].step
    spacing = every or usual_spacing(checkpoint.step for checkpoint in checkpoints)
    if every is not None:
        selected = [checkpoint for checkpoint in selected if (final - checkpoint.step) % every == 0]
    if last is not None:
        if last > len(selected):
            raise CheckpointError(
                f"expected {last} checkpoints, found {len(selected)}: {_list_steps(selected)}",
                hint=f"Use --last {len(selected)}, or select more.",
            )
        selected = selected[-last:]
    steps = [checkpoint.step for checkpoint in selected]
    if every is not None and last is None:  # it asks for all steps of its grid in the window
        steps = [first + (final - first) % every - every, *steps]
    missing = [*_missing_steps(steps, spacing)]
    if missing and not allow_gaps:
        shown = ", ".join(map(str, missing[:_SHOWN])) + (", ..." if missing[_SHOWN:] else "")
        saves = f"the run saves every {spacing} steps"
        grid = f"--every {every} counts back from step {final}" if every else saves
        noun = "step" if len(missing) == 1 else "the steps"
        raise CheckpointError(
            f"missing checkpoints: {grid}, and there are none of {noun} {shown}",
            hint="Restore them, select others by --window (a save between two others may be the "
            "last one: --window :STEP), or average without them: --allow-gaps.",
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


def _parse_name(entry: Path) -> tuple[_Form, int] | None:
    """Return the form of a name and its step number; temporary names have none."""
    name = entry.name.removesuffix(_SUFFIX)
    if name.startswith((".", "tmp")) or name.endswith((".tmp", "-tmp", "_tmp")):
        return None
    match = _STEP.fullmatch(name)
    if match is not None:
        before, step, after = match.groups()
        texts = (_OTHER_NUMBER.sub("#", text) for text in (before, after))
        return _Form(*texts), int(step)
    return (_Form("", ""), int(name)) if name.isascii() and name.isdecimal() else None


def _read_stage(checkpoint: Checkpoint) -> list[int]:
    """Return the numbers of stages and epochs in a name, which grow in a run."""
    return [int(number) for number in _STAGE.findall(checkpoint.path.name)]


def _spell_beginning(checkpoint: Checkpoint) -> str:
    """Return the beginning of a name up to the step, as a glob matches it."""
    match = _STEP.fullmatch(checkpoint.path.name.removesuffix(_SUFFIX))
    return escape(match[1]) if match is not None else ""


def _take_usual_form(run: Path, forms: Mapping[_Form, list[Checkpoint]]) -> list[Checkpoint]:
    """Return the checkpoints whose names have the form of most; warn of others."""
    whole = [form for form in forms if not form.after.startswith(_FRACTIONS)]
    if not whole:
        return []
    usual, *others = sorted(whole, key=lambda form: -len(forms[form]))
    example = forms[usual][0].path
    if others and len(forms[others[0]]) == len(forms[usual]):
        other = forms[others[0]][0].path
        raise CheckpointError(
            f"{run}: names of two forms are equally frequent: {example.name} and {other.name}",
            hint=f"Select one form: --match '{_spell_pattern(usual, example)}' or "
            f"--match '{_spell_pattern(others[0], other)}'.",
        )
    names = [entry.path.name for form in forms if form != usual for entry in forms[form]]
    if names:
        listed = ", ".join(names[:_SHOWN]) + (", ..." if names[_SHOWN:] else "")
        _LOG.warning(
            "%s: left out %s, because most names are of the form of %s", run, listed, example.name
        )
    return forms[usual]


def _spell_pattern(form: _Form, example: Path) -> str:
    """Return the glob that matches the names of a form."""
    before, after = (escape(text).replace("#", "*") for text in (form.before, form.after))
    return f"{before}*[0-9]{after}{example.suffix if example.suffix == _SUFFIX else ''}"


def _list_steps(selected: Sequence[Checkpoint]) -> str:
    return ", ".join(str(checkpoint.step) for checkpoint in selected)


def _spell(step: int | None) -> str:
    return "" if step is None else str(step)
