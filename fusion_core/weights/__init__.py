"""Named tensors that can be read a piece at a time, and the engine that moves them."""

from fusion_core.weights.alignment import AlignedSource, Alignment, align
from fusion_core.weights.checkpoint import CheckpointSource
from fusion_core.weights.execution import SerialExecutor
from fusion_core.weights.format import TensorInfo
from fusion_core.weights.linear import Linear, as_weights
from fusion_core.weights.lora import LoraSource
from fusion_core.weights.materialise import materialise
from fusion_core.weights.merged import CastSource, Kernel, MergedSource, Scope
from fusion_core.weights.outputs import staged
from fusion_core.weights.piece import Operands, Piece, in_order
from fusion_core.weights.scan import Scan
from fusion_core.weights.source import (
    BLOCK,
    Cut,
    RenamedSource,
    StateDictSource,
    WeightSource,
    assemble,
    held_in_memory,
)
from fusion_core.weights.writer import Staging

__all__ = [
    "BLOCK",
    "AlignedSource",
    "Alignment",
    "CastSource",
    "CheckpointSource",
    "Cut",
    "Kernel",
    "Linear",
    "LoraSource",
    "MergedSource",
    "Operands",
    "Piece",
    "RenamedSource",
    "Scan",
    "Scope",
    "SerialExecutor",
    "Staging",
    "StateDictSource",
    "TensorInfo",
    "WeightSource",
    "align",
    "as_weights",
    "assemble",
    "held_in_memory",
    "in_order",
    "materialise",
    "staged",
]
