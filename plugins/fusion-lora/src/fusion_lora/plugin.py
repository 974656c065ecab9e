"""Register the format `lora`, `extract-lora` and `output.adapter`; nothing heavy is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core import CommandSpec, FormatSpec, OutputSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator


@hookimpl
def fusion_register_formats() -> Iterator[FormatSpec]:
    """Register the format of adapters."""
    yield FormatSpec(
        name="lora",
        summary="A LoRA adapter of PEFT: low-rank factors of differences from a base.",
        target="fusion_lora.reading.source:LoraSource",
        files=("adapter_config.json",),
        is_delta=True,
        base_key=("adapter_config.json", "base_model_name_or_path"),
    )


@hookimpl
def fusion_register_commands() -> Iterator[CommandSpec]:
    """Register the command that turns a full model into an adapter."""
    yield CommandSpec(
        name="extract-lora",
        summary="Extract a LoRA adapter from a fine-tuned model.",
        target="fusion_lora.command:extract_lora",
    )


@hookimpl
def fusion_register_outputs() -> Iterator[OutputSpec]:
    """Register the form of merges of adapters."""
    yield OutputSpec(
        name="adapter",
        summary="Write a merge of LoRA adapters as an adapter.",
        target="fusion_lora.encoder:AdapterEncoder",
        config="fusion_lora.config:AdapterConfig",
        main_option="rank",
    )
