"""Make an output again from its recipe and provenance, and compare both."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from fusion_core import hub, plan
from fusion_core.commands import (
    assign,
    compare_data,
    execute,
    load_plugins,
    load_recipe,
    override,
    read_provenance,
)
from fusion_core.errors import FusionError, IntegrityError, PluginError, RecipeError
from fusion_publish.reproduction.differences import (
    compare_files,
    compare_inputs,
    find_causes,
    find_different_tensors,
    find_largest_difference,
    parse_inputs,
)
from fusion_publish.verification.record import RECIPE, load_provenance
from fusion_publish.verification.verifying import check_record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from fusion_core import RunOptions
    from fusion_core.commands import Plan, Provenance
    from fusion_publish.verification.locating import Located

_SECTIONS = ("model_pool", "task_pool")
#: The option that names a licence where those of the models conflict. It changes no tensor.
_LICENCE = "output.licence"
_MOST_NAMES = 3
_NO_CAUSE = (
    "nothing that was recorded differs: the output was not made by this recipe from these inputs, "
    "or the content of an input changed without its header, size and time"
)


@dataclass(frozen=True)
class Reproduction:
    """The comparison of an output with its reproduction."""

    subject: str
    #: whether each recorded file is the same; None if no digest tells
    files: Mapping[str, bool | None]
    has_same_tensors: bool
    different_tensors: tuple[str, ...]
    tensors: int
    #: the largest difference of two entries, relative to the largest magnitude of their tensor;
    #: None if the tensors are the same, or not here
    largest_difference: float | None
    #: differences between then and now that can explain others
    causes: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        """Whether all tensors and files are the same."""
        return self.has_same_tensors and False not in self.files.values()

    def raise_differences(self) -> None:
        """Raise `IntegrityError` for a result that differs."""
        if self.is_same:
            return
        names = [name for name, is_same in self.files.items() if is_same is False]
        problem = f"other files: {', '.join(names)}"
        if not self.has_same_tensors:
            shown = ", ".join(self.different_tensors[:_MOST_NAMES])
            count = f"{len(self.different_tensors)} of {self.tensors} tensors differ"
            if self.largest_difference is not None:
                count += f", by at most {self.largest_difference:.1g} of their largest entry"
            problem = f"{count}: {shown}" if shown else "the tensors differ"
        raise IntegrityError(
            f"{self.subject} was not reproduced: {problem}",
            hint="\n".join(self.causes or (_NO_CAUSE,)),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the data that `--json` prints."""
        return {"reproduced": self.is_same, **asdict(self)}


def reproduce(
    located: Located,
    output: Path,
    options: RunOptions,
    *,
    device: str | None = None,
    assignments: Sequence[str] = (),
) -> Reproduction:
    """Run the recipe of an output again into `output`, and compare the results.

    Live models are put on `device`, by default the recorded one. `assignments` name inputs that
    moved, such as `model_pool.base=PATH`. Revisions on the hub are those of the provenance. Raises
    `IntegrityError` for a damaged record or for inputs that certainly changed, before anything is
    merged, and the errors of a run.
    """
    subject = located.subject
    recorded, raw = _load(located, options, assignments)
    options = replace(options, device=device or recorded.device or "cpu")
    raw = assign(raw, ("output", "path"), str(output), origin=f"-o {output}")
    with hub.session(options.progress):
        hub.pin(recorded.commits)
        with _hint_at_moved_inputs():
            planned = plan(raw, options)
        planned.check_trust()
        problems = list(compare_inputs(recorded.inputs, parse_inputs(planned.pool.inputs())))
        problems += _compare_data(recorded, planned)
        if problems:
            raise IntegrityError(
                "\n".join([f"the inputs of {subject} changed:", *problems]),
                hint="Restore them, or name the recorded ones: --set model_pool.base=PATH.",
            )
        execute(planned)
    made = read_provenance(output)
    names = find_different_tensors(recorded, made)
    return Reproduction(
        subject,
        compare_files(recorded, made),
        recorded.outputs.tensors_blake3 == made.outputs.tensors_blake3,
        tuple(names),
        sum(map(len, made.outputs.tensors.values())),
        find_largest_difference(located.directory, output, names),
        tuple(find_causes(recorded, made)),
    )


def _compare_data(recorded: Provenance, planned: Plan) -> list[str]:
    """Describe data that the method adapts on and that changed. Unrecorded data is unknown."""
    data = {task: now for task, now in planned.data.items() if task in recorded.tasks}
    return compare_data(recorded.tasks, data, recorded_in="provenance")


def _load(
    located: Located, options: RunOptions, assignments: Sequence[str]
) -> tuple[Provenance, dict[str, Any]]:
    """Return the provenance and the recipe of an output, which must be intact."""
    directory, subject = located.directory, located.subject
    text, recorded = load_provenance(directory, subject)
    if RECIPE not in recorded.subject:
        raise RecipeError(
            f"{subject} has no recipe: fuse run did not make it",
            hint="Only outputs of fuse run, or of commands that write recipe.yaml, can be made "
            "again. fuse verify checks others.",
        )
    finding = check_record(directory, text, recorded, RECIPE)
    if finding.status.is_fault:
        raise IntegrityError(
            f"{subject}: {finding.file} is {finding.status}: {finding.detail}",
            hint=f"See: fuse verify {subject}",
        )
    for assignment in assignments:
        key = assignment.partition("=")[0]
        if key.partition(".")[0] not in _SECTIONS and key != _LICENCE:
            raise RecipeError(
                f"--set {assignment!r}: a reproduction takes locations of inputs only",
                hint=f"Set options of {' or '.join(_SECTIONS)}. To merge differently: fuse run.",
            )
    recipe = load_recipe(directory / RECIPE, load_plugins(options.block))
    return recorded, override(recipe, list(assignments))


@contextmanager
def _hint_at_moved_inputs() -> Iterator[None]:
    """Add to an error of planning how to name inputs that moved."""
    try:
        yield
    except PluginError:
        raise
    except FusionError as error:
        advice = "If an input moved, name it: --set model_pool.base=PATH."
        hint = f"{error.hint}\n{advice}" if error.hint else advice
        raise type(error)(error.message, hint=hint) from error
