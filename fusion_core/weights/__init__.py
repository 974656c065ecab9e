"""Named tensors that can be read one range at a time, and the engine that merges them."""

from fusion_core._moved import refuse_old_names
from fusion_core.recipe.depth import (
    depths,
    interpolate,
    is_before_layers,
    layers_of,
    renumber_layer,
)
from fusion_core.recipe.patterns import select_names
from fusion_core.weights.aligning.alignment import AlignedSource, Alignment, align
from fusion_core.weights.aligning.difference import Difference
from fusion_core.weights.aligning.vocabulary import differs_in_vocabulary, vocabulary_size
from fusion_core.weights.joined import JoinedSource, RenamedSource
from fusion_core.weights.matrices import Columns, Matrices, Rows, Slot, Stacked
from fusion_core.weights.merging.compiled import CompiledFunction
from fusion_core.weights.merging.execution import SerialExecutor, is_in_process, run_all
from fusion_core.weights.merging.kernels import (
    CoordinatesKernel,
    Kernel,
    PieceKernel,
    RowsKernel,
    Scope,
)
from fusion_core.weights.merging.linear import Linear, as_weights
from fusion_core.weights.merging.masking import task_weights
from fusion_core.weights.merging.merged_source import CastSource, MergedSource
from fusion_core.weights.merging.nearness import describe_nearness
from fusion_core.weights.merging.piece import (
    Operands,
    Piece,
    broadcast_per_expert,
    check_finite,
    sum_in_order,
)
from fusion_core.weights.merging.result_cache import ResultCache
from fusion_core.weights.merging.scan import Scan
from fusion_core.weights.merging.selection import kth_largest_magnitudes
from fusion_core.weights.merging.singular import Components, decompose, is_matrix, joint_rank, polar
from fusion_core.weights.merging.trimming import (
    ElectKernel,
    TrimKernel,
    TrimSurvey,
    agreeing_magnitudes,
    count_for_density,
    elect_sign,
    largest_by_rank,
)
from fusion_core.weights.orientation import are_experts_transposed, are_neighbours_transposed
from fusion_core.weights.origin import Origin, stamp_of
from fusion_core.weights.packing import Layout
from fusion_core.weights.ranges import read_range
from fusion_core.weights.reading.assets import (
    SIDE_FILES,
    TOKENIZER_FILES,
    Files,
    change_config,
    drop_dangerous_fields,
    is_same_content,
    list_side_files,
    parse_config,
    parse_safe_config,
    read_config,
    read_side_file,
)
from fusion_core.weights.reading.checkpoint import CheckpointSource
from fusion_core.weights.reading.files import FileSource
from fusion_core.weights.reading.format import parse_header
from fusion_core.weights.reading.header import Header, StoredTensor
from fusion_core.weights.reading.location import Location
from fusion_core.weights.reading.name_matching import match_names
from fusion_core.weights.reading.package_files import PackagedFiles
from fusion_core.weights.reading.quantisation import (
    QUANTISER_FILES,
    find_config_value,
    refuse_packed,
)
from fusion_core.weights.reading.remote import RemoteSource, open_checkpoint
from fusion_core.weights.reading.task_masks import PackedMasks
from fusion_core.weights.reading.untrusted_json import parse_json
from fusion_core.weights.source import (
    BLOCK,
    Contradiction,
    Cut,
    LowRank,
    TensorInfo,
    WeightSource,
    assemble,
    check_unchanged,
    collect_origins,
)
from fusion_core.weights.state_dict import StateDictSource, find_in_memory_source
from fusion_core.weights.writing.disk import DataFile
from fusion_core.weights.writing.materialise import materialise
from fusion_core.weights.writing.outputs import stage_output
from fusion_core.weights.writing.writer import Staging

__all__ = [
    "BLOCK",
    "QUANTISER_FILES",
    "SIDE_FILES",
    "TOKENIZER_FILES",
    "AlignedSource",
    "Alignment",
    "CastSource",
    "CheckpointSource",
    "Columns",
    "CompiledFunction",
    "Components",
    "Contradiction",
    "CoordinatesKernel",
    "Cut",
    "DataFile",
    "Difference",
    "ElectKernel",
    "FileSource",
    "Files",
    "Header",
    "JoinedSource",
    "Kernel",
    "Layout",
    "Linear",
    "Location",
    "LowRank",
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
    "ResultCache",
    "Rows",
    "RowsKernel",
    "Scan",
    "Scope",
    "SerialExecutor",
    "Slot",
    "Stacked",
    "Staging",
    "StateDictSource",
    "StoredTensor",
    "TensorInfo",
    "TrimKernel",
    "TrimSurvey",
    "WeightSource",
    "agreeing_magnitudes",
    "align",
    "are_experts_transposed",
    "are_neighbours_transposed",
    "as_weights",
    "assemble",
    "broadcast_per_expert",
    "change_config",
    "check_finite",
    "check_unchanged",
    "collect_origins",
    "count_for_density",
    "decompose",
    "depths",
    "describe_nearness",
    "differs_in_vocabulary",
    "drop_dangerous_fields",
    "elect_sign",
    "find_config_value",
    "find_in_memory_source",
    "interpolate",
    "is_before_layers",
    "is_in_process",
    "is_matrix",
    "is_same_content",
    "joint_rank",
    "kth_largest_magnitudes",
    "largest_by_rank",
    "layers_of",
    "list_side_files",
    "match_names",
    "materialise",
    "open_checkpoint",
    "parse_config",
    "parse_header",
    "parse_json",
    "parse_safe_config",
    "polar",
    "read_config",
    "read_range",
    "read_side_file",
    "refuse_packed",
    "renumber_layer",
    "run_all",
    "select_names",
    "stage_output",
    "stamp_of",
    "sum_in_order",
    "task_weights",
    "vocabulary_size",
]

__getattr__ = refuse_old_names(__name__)
