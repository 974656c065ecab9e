"""Building blocks for methods that learn from data or measure live models.

A live merge whose coefficients have an exact gradient, passes of unlabeled batches through it,
experts as teachers, processes that share the tasks, resumable state, and statistics of experts.
The library knows pools and tasks, but no method.
"""

from fusion_adapting._adapters import module_of_features
from fusion_adapting._gradients import squared_gradients, squared_gradients_of
from fusion_adapting._inputs import input_dim, show_inputs
from fusion_adapting._live import build_live, merged_parameters, names_of, standing_in
from fusion_adapting._live_merge import Leaf, LiveMerge
from fusion_adapting._moments import Moments, moments, moments_of
from fusion_adapting._packed import PackedLayer, PackedWeights, is_packed
from fusion_adapting._passes import Batches, Objective, Outcome, Passes
from fusion_adapting._predictions import (
    disagreement,
    entropy,
    generator_of,
    log_probabilities,
    predict_unlabeled,
)
from fusion_adapting._ranks import Ranks, joined_ranks
from fusion_adapting._sharing import Grain
from fusion_adapting._state import StateStore
from fusion_adapting._teachers import ask_teachers
from fusion_core.contracts.features import put_adapter, through_adapter
from fusion_core.machine.memory import keeping_freed_memory
from fusion_core.machine.products import with_fast_products
from fusion_core.weights.merging.execution import on_cores

__all__ = [
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
    "Ranks",
    "StateStore",
    "ask_teachers",
    "build_live",
    "disagreement",
    "entropy",
    "generator_of",
    "input_dim",
    "is_packed",
    "joined_ranks",
    "keeping_freed_memory",
    "log_probabilities",
    "merged_parameters",
    "module_of_features",
    "moments",
    "moments_of",
    "names_of",
    "on_cores",
    "predict_unlabeled",
    "put_adapter",
    "show_inputs",
    "squared_gradients",
    "squared_gradients_of",
    "standing_in",
    "through_adapter",
    "with_fast_products",
]
