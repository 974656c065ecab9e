"""Building blocks for methods that learn from data or measure live models.

A live merge whose coefficients have an exact gradient, passes of unlabeled batches through it,
experts as teachers, processes that share the tasks, resumable state, and statistics of experts.
The library knows pools and tasks, but no method.
"""

from fusion_adapting._adapters import find_feature_module
from fusion_adapting._batches import map_batches
from fusion_adapting._checkpointing import checkpoint_layers
from fusion_adapting._classes import UNDEFINED, measure_accuracy, most_likely
from fusion_adapting._finite import refuse_nonfinite
from fusion_adapting._gradients import compute_squared_gradients, squared_gradients
from fusion_adapting._inputs import input_dim, observe_inputs
from fusion_adapting._live import (
    build_live,
    group_tied_names,
    merged_parameters,
    replace_parameters,
)
from fusion_adapting._live_merge import Leaf, LiveMerge
from fusion_adapting._memory import count_live_memory
from fusion_adapting._moments import Moments, compute_moments, moments
from fusion_adapting._packed import PackedLayer, PackedWeights, is_packed
from fusion_adapting._passes import Batches, Objective, Outcome, Passes
from fusion_adapting._predictions import (
    disagreement,
    entropy,
    log_probabilities,
    make_generator,
    predict_unlabeled,
    standardise,
)
from fusion_adapting._ranks import Ranks, join_ranks
from fusion_adapting._sharing import Grain
from fusion_adapting._state import StateStore
from fusion_adapting._teachers import Predictions, ask_teachers
from fusion_core.contracts.feature_adapters import apply_adapter, attach_adapter
from fusion_core.machine.linear_kernels import use_fast_linear_layers
from fusion_core.machine.memory import retain_freed_memory
from fusion_core.weights.merging.execution import map_on_cores

__all__ = [
    "UNDEFINED",
    "Batches",
    "Grain",
    "Leaf",
    "LiveMerge",
    "Moments",
    "Objective",
    "Outcome",
    "PackedLayer",
    "PackedWeights",
    "Passes",
    "Predictions",
    "Ranks",
    "StateStore",
    "apply_adapter",
    "ask_teachers",
    "attach_adapter",
    "build_live",
    "checkpoint_layers",
    "compute_moments",
    "compute_squared_gradients",
    "count_live_memory",
    "disagreement",
    "entropy",
    "find_feature_module",
    "group_tied_names",
    "input_dim",
    "is_packed",
    "join_ranks",
    "log_probabilities",
    "make_generator",
    "map_batches",
    "map_on_cores",
    "measure_accuracy",
    "merged_parameters",
    "moments",
    "most_likely",
    "observe_inputs",
    "predict_unlabeled",
    "refuse_nonfinite",
    "replace_parameters",
    "retain_freed_memory",
    "squared_gradients",
    "standardise",
    "use_fast_linear_layers",
]
