"""Registers the formats of distributed checkpoints. Imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import FormatSpec, hookimpl

#: The folders of a checkpoint in which trainers put the model: torchtitan and Megatron use none,
#: Accelerate, Lightning and NeMo the others.
FOLDERS = ("", "pytorch_model_fsdp_0/", "model/", "weights/")


@hookimpl
def fusion_register_formats() -> Iterator[FormatSpec]:
    """Register both layouts that torch writes."""
    yield FormatSpec(
        name="dcp",
        summary="A distributed checkpoint of torch: .metadata and .distcp files.",
        target="formats_dcp.distcp:DcpSource",
        files=tuple(
            f"{folder}{name}" for folder in FOLDERS for name in (".metadata", "__*.distcp")
        ),
    )
    yield FormatSpec(
        name="dcp-safetensors",
        summary="A distributed checkpoint of torch: one safetensors file per rank.",
        target="formats_dcp.sharded_safetensors:ShardedSafetensors",
        files=("shard-*-model-*-of-*.safetensors",),
    )
