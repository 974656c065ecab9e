"""Comments on the options of imported recipes: the keys of FusionBench that they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recipes_fusionbench.options import class_of, target_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recipes_fusionbench.fusion import Fusion

#: Comments by algorithm and option.
_OPTIONS = {
    ("task-arithmetic", "scale"): "scaling_factor",
    ("weighted-average", "weights"): "weights, by name",
    ("ties", "density"): "threshold, as a fraction",
    ("ties", "scope"): "FusionBench trims the whole model",
    ("ties", "zero_sign"): "as FusionBench",
    ("ties", "normalize"): "merge_func: false is sum, true is mean",
    ("ties", "scale"): "scaling_factor",
    ("dare", "density"): "1 - sparsity_ratio",
    ("dare", "scale"): "scaling_factor",
    ("magmax", "scale"): "scaling_factor",
    ("iso-c", "scale"): "scaling_factor",
    ("iso-cts", "scale"): "scaling_factor",
    ("iso-cts", "common_fraction"): "common_space_fraction",
    ("tsv-m", "scale"): "alpha",
    ("wudi", "steps"): "iter_num",
    ("doge", "scale"): "lamda",
    ("doge", "density"): "K, as a fraction",
    ("doge", "only"): "FusionBench merges only these",
    ("emr", "rescale"): "as FusionBench",
    ("fisher", "samples"): "num_fisher_examples",
    ("fisher", "floor"): "minimal_fisher_weight",
    ("regmean", "off_diagonal"): "reduce_non_diagonal_ratio",
    ("regmean", "ridge"): "FusionBench has none",
    ("regmean-plus-plus", "off_diagonal"): "reduce_non_diagonal_ratio",
    ("regmean-plus-plus", "ridge"): "FusionBench has none",
    ("regmean-plus-plus", "skip"): "FusionBench leaves it at the pretrained model",
    ("adamerging", "init"): "init_values",
    ("adamerging", "steps"): "max_steps",
    ("adamerging", "clamp"): "clamp_weights",
}


def make_comments(recipe: Mapping[str, Any], fusion: Fusion) -> dict[tuple[str, ...], str]:
    """Return the comments of a recipe, by the keys of its options."""
    comments: dict[tuple[str, ...], str] = {
        ("model_pool", "name"): target_of(fusion.models.options.values),
        ("alignment", "config"): "FusionBench does not compare configurations",
        ("alignment", "tokenizer"): "FusionBench does not compare tokenizers",
    }
    algorithm = recipe["algorithm"]
    if isinstance(algorithm, dict):
        method = fusion.options.values
        comments["algorithm", "name"] = class_of(method, "name")
        for option in algorithm:
            comment = _OPTIONS.get((algorithm["name"], option))
            if comment is not None:
                comments["algorithm", option] = comment
    return comments
