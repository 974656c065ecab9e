"""Named tensors that can be read one range at a time, and the engine that merges them."""

from fusion_core.recipe.depth import interpolate, depths, layers_of, renumber_layer
from fusion_core.recipe.patterns import select_names
from fusion_core.weights.aligning.alignment import AlignedSource, Alignment, align
from fusion_core.weights.matrices import Columns, Matrices, Rows, Slot, Stacked
from fusion_core.weights.merging.kernels import (
    CoordinatesKernel,
    Kernel,
    PieceKernel,
    RowsKernel,
    Scope,
)
from fusion_core.weights.merging.execution import SerialExecutor, is_in_process
from fusion_core.weights.merging.linear import Linear, as_weights
from fusion_core.weights.merging.masking import task_weights
from fusion_core.weights.merging.merged_source import CastSource, MergedSource
from fusion_core.weights.merging.nearness import describe_nearness
from fusion_core.weights.merging.piece import Operands, Piece, sum_in_order, broadcast_per_expert
from fusion_core.weights.merging.scan import Scan
from fusion_core.weights.merging.selection import kth_largest_magnitudes
from fusion_core.weights.merging.result_cache import ResultCache
from fusion_core.weights.merging.singular import Components, decompose, is_matrix, joint_rank, polar
from fusion_core.weights.merging.trimming import (
    ElectKernel,
    TrimSurvey,
    TrimKernel,
    agreeing_magnitudes,
    elect_sign,
    count_for_density,
)
from fusion_core.weights.origin import Origin, stamp_of
from fusion_core.weights.packing import Layout
from fusion_core.weights.reading.assets import (
    Files,
    read_side_file,
    read_licence,
    read_config,
    parse_safe_config,
    select_tokenizer_files,
    change_config,
)
from fusion_core.weights.reading.checkpoint import CheckpointSource
from fusion_core.weights.reading.files import FileSource
from fusion_core.weights.reading.header import StoredTensor
from fusion_core.weights.reading.layer_config import replace_layers
from fusion_core.weights.reading.location import Location
from fusion_core.weights.reading.lora import LoraSource
from fusion_core.weights.reading.package_files import PackagedFiles
from fusion_core.weights.reading.remote import RemoteSource
from fusion_core.weights.reading.name_matching import match_names
from fusion_core.weights.reading.task_masks import PackedMasks
from fusion_core.weights.reading.untrusted_json import parse_json
from fusion_core.weights.source import (
    BLOCK,
    Cut,
    RenamedSource,
    TensorInfo,
    WeightSource,
    assemble,
    check_unchanged,
    collect_origins,
)
from fusion_core.weights.state_dict import StateDictSource, find_in_memory_source
from fusion_core.weights.writing.materialise import materialise
from fusion_core.weights.writing.outputs import stage_output
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
    "ElectKernel",
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
    "ResultCache",
    "Slot",
    "Stacked",
    "Staging",
    "StateDictSource",
    "StoredTensor",
    "TensorInfo",
    "TrimSurvey",
    "TrimKernel",
    "WeightSource",
    "agreeing_magnitudes",
    "align",
    "interpolate",
    "as_weights",
    "assemble",
    "check_unchanged",
    "read_side_file",
    "decompose",
    "depths",
    "elect_sign",
    "find_in_memory_source",
    "sum_in_order",
    "is_in_process",
    "is_matrix",
    "joint_rank",
    "count_for_density",
    "kth_largest_magnitudes",
    "layers_of",
    "read_licence",
    "select_names",
    "materialise",
    "describe_nearness",
    "collect_origins",
    "parse_json",
    "broadcast_per_expert",
    "polar",
    "read_config",
    "renumber_layer",
    "parse_safe_config",
    "match_names",
    "stage_output",
    "stamp_of",
    "task_weights",
    "select_tokenizer_files",
    "change_config",
    "replace_layers",
]
