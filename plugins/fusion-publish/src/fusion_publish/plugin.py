"""Registers the commands. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core import CommandSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator


@hookimpl
def fusion_register_commands() -> Iterator[CommandSpec]:
    """Register the commands that verify, reproduce, lock and sign."""
    yield CommandSpec(
        name="verify",
        summary="Compare every file of an output with its provenance.",
        target="fusion_publish.verification.command:verify",
    )
    yield CommandSpec(
        name="reproduce",
        summary="Make an output again from its provenance, and compare the results.",
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
