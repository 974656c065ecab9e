"""Building blocks for methods that learn from data or measure live models.

A live merge whose coefficients have an exact gradient, passes of unlabeled batches through it,
experts as teachers, processes that share the tasks, resumable state, and statistics of experts.
The library knows pools and tasks, but no method.
"""

from fusion_adapting._adapters import find_feature_module
from fusion_adapting._gradients import squared_gradients, compute_squared_gradients
from fusion_adapting._inputs import input_dim, observe_inputs
from fusion_adapting._live import (
    build_live,
    merged_parameters,
    group_tied_names,
    replace_parameters,
)
from fusion_adapting._live_merge import Leaf, LiveMerge
from fusion_adapting._moments import Moments, moments, compute_moments
from fusion_adapting._passes import Batches, Objective, Outcome, Passes
from fusion_adapting._predictions import (
    disagreement,
    entropy,
    make_generator,
    log_probabilities,
    predict_unlabeled,
)
from fusion_adapting._ranks import Ranks, join_ranks
from fusion_adapting._sharing import Grain
from fusion_adapting._state import StateStore
from fusion_adapting._teachers import ask_teachers
from fusion_core.contracts.feature_adapters import attach_adapter, apply_adapter
from fusion_core.machine.memory import retain_freed_memory
from fusion_core.machine.linear_kernels import use_fast_linear_layers
from fusion_core.weights.merging.execution import map_on_cores

__all__ = [
    "Batches",
    "Grain",
    "Leaf",
    "LiveMerge",
    "Moments",
    "Objective",
    "Outcome",
    "Passes",
    "Ranks",
    "StateStore",
    "ask_teachers",
    "build_live",
    "disagreement",
    "entropy",
    "make_generator",
    "input_dim",
    "join_ranks",
    "retain_freed_memory",
    "log_probabilities",
    "merged_parameters",
    "find_feature_module",
    "moments",
    "compute_moments",
    "group_tied_names",
    "map_on_cores",
    "predict_unlabeled",
    "attach_adapter",
    "observe_inputs",
    "squared_gradients",
    "compute_squared_gradients",
    "replace_parameters",
    "apply_adapter",
    "use_fast_linear_layers",
]
