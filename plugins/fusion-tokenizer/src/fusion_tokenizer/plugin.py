"""Register `fuse transplant-tokenizer`; nothing heavy is imported."""

from collections.abc import Iterator

from fusion_core import CommandSpec, hookimpl


@hookimpl
def fusion_register_commands() -> Iterator[CommandSpec]:
    """Register the command."""
    yield CommandSpec(
        name="transplant-tokenizer",
        summary="Give a model the tokenizer of another model.",
        target="fusion_tokenizer.command:transplant_tokenizer",
    )
