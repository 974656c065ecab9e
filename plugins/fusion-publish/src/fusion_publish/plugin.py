"""Registers the commands and hooks. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core import CommandSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fusion_core import RunInfo


@hookimpl
def fusion_register_commands() -> Iterator[CommandSpec]:
    """Register the commands that verify, reproduce, lock, sign, describe and publish a merge."""
    yield CommandSpec(
        name="verify",
        summary="Compare every file of an output with its provenance.",
        target="fusion_publish.verification.command:verify",
    )
    yield CommandSpec(
        name="reproduce",
        summary="Make an output again, and compare the results.",
        target="fusion_publish.reproduction.command:reproduce",
    )
    yield CommandSpec(
        name="lock",
        summary="Pin the inputs of a recipe to commits and hashes.",
        target="fusion_publish.locking.command:lock",
    )
    yield CommandSpec(
        name="sign",
        summary="Sign the files of an output.",
        target="fusion_publish.signing.command:sign",
    )
    yield CommandSpec(
        name="card",
        summary="Write the model card of a merge.",
        target="fusion_publish.card.command:card",
    )
    yield CommandSpec(
        name="push",
        summary="Upload a merge to the Hugging Face Hub.",
        target="fusion_publish.push.command:push",
    )


@hookimpl
def fusion_check_run(run: RunInfo) -> None:
    """Refuse a run whose models' licences conflict, unless the recipe names a licence."""
    from fusion_publish.card.licences import check_licences

    if run.path is not None:
        check_licences(run.cards, run.recipe["output"].get("licence"))


@hookimpl
def fusion_output_written(path: Path) -> None:
    """Write the model card of an output, or bring it up to date with a new evaluation."""
    from fusion_publish.card.writing import update_card

    update_card(path)
