"""The values in FusionBench 0.2.33's files `method/NAME.yaml`, of methods with a counterpart."""

from __future__ import annotations

from typing import Any

_PACKAGE = "fusion_bench.method."

#: The values that the files of AdaMerging for CLIP share.
_ADAMERGING = {
    "weights": None,
    "optimizer": "adam",
    "lr": 1e-3,
    "init_values": 0.3,
    "clamp_weights": False,
    "batch_size": 16,
    "max_steps": 1000,
}
#: The values that the files of OPCM share.
_OPCM = {
    "shuffle_order": True,
    "alpha": 0.5,
    "seed": None,
    "save_on_every_step": True,
    "evaluate_on_every_step": True,
}
#: The values in `method/NAME.yaml`.
_FILES: dict[str, dict[str, Any]] = {
    "dummy": {"_target_": "DummyAlgorithm"},
    "simple_average": {"_target_": "SimpleAverageAlgorithm"},
    "task_arithmetic": {"_target_": "TaskArithmeticAlgorithm", "scaling_factor": 0.3},
    "ties_merging": {
        "_target_": "TiesMergingAlgorithm",
        "scaling_factor": 0.3,
        "threshold": 20,
        "remove_keys": [],
        "merge_func": "sum",
    },
    "linear/weighted_average": {
        "_target_": "WeightedAverageAlgorithm",
        "normalize": True,
        "weights": [0.5, 0.5],
    },
    "linear/linear_interpolation": {"_target_": "LinearInterpolationAlgorithm", "t": 0.5},
    "linear/expo": {"_target_": "ExPOAlgorithm", "extrapolation_factor": 0.1},
    "linear/simple_average_for_causallm": {
        "_target_": "SimpleAverageForCausalLM",
        "merge_backbone": False,
    },
    "linear/task_arithmetic_for_causallm": {
        "_target_": "TaskArithmeticForCausalLM",
        "scaling_factor": 0.3,
        "merge_backbone": False,
    },
    "linear/ties_merging_for_causallm": {
        "_target_": "TiesMergingForCausalLM",
        "scaling_factor": 0.3,
        "threshold": 20,
        "remove_keys": [],
        "merge_func": "sum",
        "merge_backbone": False,
    },
    "dare/simple_average": {
        "_target_": "DareSimpleAverage",
        "sparsity_ratio": 0.5,
        "only_on_linear_weights": False,
        "rescale": True,
    },
    "dare/task_arithmetic": {
        "_target_": "DareTaskArithmetic",
        "scaling_factor": 0.3,
        "sparsity_ratio": 0.5,
        "only_on_linear_weights": False,
        "rescale": True,
    },
    "dare/ties_merging": {
        "_target_": "DareTiesMerging",
        "sparsity_ratio": 0.5,
        "only_on_linear_weights": False,
        "rescale": True,
        "scaling_factor": 0.5,
        "threshold": 20,
        "remove_keys": [],
        "merge_func": "sum",
    },
    "magmax/magmax": {"_target_": "MagMaxAlgorithm", "scaling_factor": 0.5},
    "slerp/slerp": {
        "_target_": "SlerpMergeAlgorithm",
        "t": 0.5,
        "DOT_THRESHOLD": 0.9995,
        "epsilon": 1e-8,
    },
    "slerp/slerp_lm": {"_target_": "SlerpForCausalLM", "t": 0.5},
    "emr_merging/emr_merging": {"_target_": "EMRMerging"},
    "wudi/wudi": {"_target_": "WUDIMerging", "iter_num": 400, "exclude_keys": None},
    "doge_ta/doge_ta": {"_target_": "DOGE_TA_Algorithm", "subspace": 6, "K": 30, "lamda": 0.07},
    "opcm/opcm": {"_target_": "opcm.opcm.OPCMForCLIP", **_OPCM},
    "opcm/opcm_general": {"_target_": "opcm.opcm_general.OPCM", **_OPCM, "num_ray_actors": 0},
    "task_singular_vector/TaskSingularVectorMerging": {
        "_target_": "TaskSingularVectorMerging",
        "exclude_keys": None,
        "alpha": 1,
        "return_single_task_models": False,
    },
    "isotropic_merging/iso_c": {
        "_target_": "ISO_C_Merge",
        "scaling_factor": 1.0,
        "exclude_keys": None,
    },
    "isotropic_merging/iso_cts": {
        "_target_": "ISO_CTS_Merge",
        "scaling_factor": 1.0,
        "common_space_fraction": 0.8,
        "exclude_keys": None,
    },
    "fisher_merging/clip_fisher_merging": {
        "_target_": "FisherMergingForCLIPVisionModel",
        "exclude_param_names_regex": [],
        "normalize_fisher_weight": True,
        "minimal_fisher_weight": 1e-6,
        "num_fisher_examples": 256,
    },
    "fisher_merging/gpt2_fisher_merging": {
        "_target_": "FisherMergingAlgorithmForGPT2",
        "exclude_param_names_regex": [],
        "normalize_fisher_weight": True,
        "minimal_fisher_weight": 1e-6,
        "num_fisher_examples": 256,
    },
    "regmean/clip_regmean": {
        "_target_": "RegMeanAlgorithmForCLIP",
        "exclude_param_names_regex": [],
        "num_regmean_examples": 256,
        "weight_transpose": True,
        "reduce_non_diagonal_ratio": 0.95,
    },
    "regmean/gpt2_regmean": {
        "_target_": "RegMeanAlgorithmForGPT2",
        "exclude_param_names_regex": [],
        "num_regmean_examples": 256,
        "weight_transpose": False,
        "reduce_non_diagonal_ratio": 0.6,
    },
    "regmean_plusplus/clip_regmean_plusplus": {
        "_target_": "RegMeanAlgorithmForCLIPPlusPlus",
        "exclude_param_names_regex": [],
        "num_regmean_examples": 256,
        "weight_transpose": True,
        "reduce_non_diagonal_ratio": 0.95,
    },
    "adamerging/clip": {"name": "clip_layer_wise_adamerging", **_ADAMERGING},
    "adamerging/layer_wise_flan_t5": {
        "_target_": "adamerging.flan_t5_layer_wise_adamerging.FlanT5LayerWiseAdaMergingAlgorithm",
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 1e-3},
        "dataloader_kwargs": {"batch_size": 4, "num_workers": 0},
        "init_values": 0.3,
        "max_steps": 1000,
        "variant": None,
        "clamp_weights": False,
    },
    "surgery/adamerging_surgery": {
        "name": "clip_layer_wise_adamerging_surgery",
        **_ADAMERGING,
        "surgery_steps": 1000,
    },
}


def find_method(name: str) -> dict[str, Any] | None:
    """Return the values of a method's file; None for an unknown name."""
    options = _FILES.get(name)
    if options is None or "_target_" not in options:
        return options
    return {**options, "_target_": _PACKAGE + options["_target_"]}
