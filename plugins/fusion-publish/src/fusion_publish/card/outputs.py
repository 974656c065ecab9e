"""The output directory of a run as a model card describes it. Nothing else is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fusion_core import Report
from fusion_core.commands import load_yaml, read_provenance
from fusion_core.errors import CheckpointError, FusionError
from fusion_core.files import report_unreadable
from fusion_core.hub import looks_like_id, parse
from fusion_core.weights import read_config
from fusion_publish.verification.record import PROVENANCE, RECIPE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from fusion_core.commands import Input, Provenance


@dataclass(frozen=True)
class Parent:
    """A model that was merged."""

    name: str
    #: the repository and commit, or the name of the directory
    source: str

    @property
    def repository(self) -> str | None:
        """The repository on the hub; None for files of this machine."""
        return repository_of(self.source)


@dataclass(frozen=True)
class MergeOutput:
    """A directory that `fuse` wrote: its provenance, recipe, configuration and report."""

    directory: Path
    provenance: Provenance
    #: None if a command wrote the directory that has no recipe, such as `fuse extract-lora`
    recipe_text: str | None
    report: Report | None

    @classmethod
    def read(cls, directory: Path) -> MergeOutput:
        """Read a directory.

        Raises `CheckpointError` for one that `fuse` did not write, or whose recipe is missing.
        """
        if not (directory / PROVENANCE).is_file():
            raise CheckpointError(
                f"{directory} has no {PROVENANCE}: expected a directory that fuse wrote",
                hint="Name the output of a run.",
            )
        provenance = read_provenance(directory)
        recipe = None if provenance.command else _read_recipe(directory / RECIPE)
        return cls(directory, provenance, recipe, read_report(directory))

    @property
    def licence(self) -> str | None:
        """The licence that the recipe names."""
        if self.recipe_text is None:
            return None
        match load_yaml(self.recipe_text, origin=RECIPE):
            case {"output": {"licence": str(licence)}}:
                return licence
        return None

    @property
    def is_merge(self) -> bool:
        """Whether a recipe was run, and not another command."""
        return self.recipe_text is not None

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The model's `config.json`; empty without one."""
        return self.read_json("config.json")

    @property
    def cards(self) -> Mapping[str, Mapping[str, Any]]:
        """The facts of the models' cards, by model; empty for a model without a card."""
        known = self.provenance.cards
        return {parent.name: known.get(parent.name, {}) for parent in self.parents}

    @cached_property
    def parents(self) -> list[Parent]:
        """The merged models, those of nested recipes included."""
        return list(_list_parents(self.provenance.inputs))

    @property
    def methods(self) -> list[str]:
        """The names of the stages; the command, if no recipe was run."""
        command = self.provenance.command
        return [command] if command else [stage.name for stage in self.provenance.stages]

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the core and of the plugins that the merge depends on."""
        core = self.provenance.versions["fusion-core"]
        return {"fusion-core": core, **self.provenance.plugins}

    def has(self, name: str) -> bool:
        """Tell whether the directory has a file."""
        return (self.directory / name).is_file()

    def read_json(self, name: str) -> Mapping[str, Any]:
        """Parse a file of the directory; a missing one is empty."""
        return read_config(self.directory / name) if self.has(name) else {}


def read_report(directory: Path) -> Report | None:
    """Return a directory's report with its outcomes, or None without one."""
    path, outcomes = directory / "report.json", directory / "outcomes.json"
    if not path.is_file():
        return None
    try:
        report = Report.from_json(json.loads(path.read_bytes()))
        if outcomes.is_file():
            report = report.with_outcomes(json.loads(outcomes.read_bytes()))
    except ValueError as error:
        problem = f"{path} or outcomes.json is invalid: {error}"
        raise FusionError(problem, hint=f"Measure again: fuse evaluate {directory}") from error
    return report


def _read_recipe(path: Path) -> str:
    with report_unreadable(path):
        return path.read_text(encoding="utf-8", errors="replace")


def repository_of(source: str) -> str | None:
    """Return the repository of a text `org/name@commit`, or None for any other text."""
    reference = parse(source) if looks_like_id(source) else None
    return reference.repo if reference is not None and reference.is_pinned else None


def _list_parents(inputs: Mapping[str, Input], prefix: str = "") -> Iterator[Parent]:
    for name, model in inputs.items():
        if model.inputs:
            yield from _list_parents(model.inputs, f"{prefix}{name}/")
        else:
            yield Parent(f"{prefix}{name}", model.source)
