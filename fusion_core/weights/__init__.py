"""Named tensors that can be read one range at a time, and the engine that merges them."""

from fusion_core.recipe.depth import along, depths, layers_of, renumbered
from fusion_core.recipe.patterns import matching
from fusion_core.weights.aligning.alignment import AlignedSource, Alignment, align
from fusion_core.weights.matrices import Columns, Matrices, Rows, Slot, Stacked
from fusion_core.weights.merging.applied import (
    CoordinatesKernel,
    Kernel,
    PieceKernel,
    RowsKernel,
    Scope,
)
from fusion_core.weights.merging.execution import SerialExecutor, is_in_process
from fusion_core.weights.merging.linear import Linear, as_weights
from fusion_core.weights.merging.masked import task_weights
from fusion_core.weights.merging.merged import CastSource, MergedSource
from fusion_core.weights.merging.nearness import nearness
from fusion_core.weights.merging.piece import Operands, Piece, in_order, per_expert
from fusion_core.weights.merging.scan import Scan
from fusion_core.weights.merging.select import kth_largest_magnitudes
from fusion_core.weights.merging.shared import Shared
from fusion_core.weights.merging.singular import Components, decompose, is_matrix, joint_rank, polar
from fusion_core.weights.merging.trimming import (
    Electing,
    Trim,
    Trimming,
    agreeing,
    elected_sign,
    kept_count,
)
from fusion_core.weights.origin import Origin, stamp_of
from fusion_core.weights.packing import Layout
from fusion_core.weights.reading.assets import (
    Files,
    content_of,
    licence_of,
    read_config,
    safe_config,
    tokenizer_of,
    with_config,
)
from fusion_core.weights.reading.checkpoint import CheckpointSource
from fusion_core.weights.reading.files import FileSource
from fusion_core.weights.reading.header import StoredTensor
from fusion_core.weights.reading.layered import with_layers
from fusion_core.weights.reading.location import Location
from fusion_core.weights.reading.lora import LoraSource
from fusion_core.weights.reading.packaged import PackagedFiles
from fusion_core.weights.reading.remote import RemoteSource
from fusion_core.weights.reading.spelling import same_tensors
from fusion_core.weights.reading.task_masks import PackedMasks
from fusion_core.weights.reading.untrusted import parse_json
from fusion_core.weights.source import (
    BLOCK,
    Cut,
    RenamedSource,
    TensorInfo,
    WeightSource,
    assemble,
    check_unchanged,
    origins,
)
from fusion_core.weights.state_dict import StateDictSource, held_in_memory
from fusion_core.weights.writing.materialise import materialise
from fusion_core.weights.writing.outputs import staged
from fusion_core.weights.writing.writer import Staging

__all__ = [
    "BLOCK",
    "AlignedSource",
    "Alignment",
    "CastSource",
    "CheckpointSource",
    "Columns",
    "Components",
    "CoordinatesKernel",
    "Cut",
    "Electing",
    "FileSource",
    "Files",
    "Kernel",
    "Layout",
    "Linear",
    "Location",
    "LoraSource",
    "Matrices",
    "MergedSource",
    "Operands",
    "Origin",
    "PackagedFiles",
    "PackedMasks",
    "Piece",
    "PieceKernel",
    "RemoteSource",
    "RenamedSource",
    "Rows",
    "RowsKernel",
    "Scan",
    "Scope",
    "SerialExecutor",
    "Shared",
    "Slot",
    "Stacked",
    "Staging",
    "StateDictSource",
    "StoredTensor",
    "TensorInfo",
    "Trim",
    "Trimming",
    "WeightSource",
    "agreeing",
    "align",
    "along",
    "as_weights",
    "assemble",
    "check_unchanged",
    "content_of",
    "decompose",
    "depths",
    "elected_sign",
    "held_in_memory",
    "in_order",
    "is_in_process",
    "is_matrix",
    "joint_rank",
    "kept_count",
    "kth_largest_magnitudes",
    "layers_of",
    "licence_of",
    "matching",
    "materialise",
    "nearness",
    "origins",
    "parse_json",
    "per_expert",
    "polar",
    "read_config",
    "renumbered",
    "safe_config",
    "same_tensors",
    "staged",
    "stamp_of",
    "task_weights",
    "tokenizer_of",
    "with_config",
    "with_layers",
]
