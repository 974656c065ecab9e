"""Comments on the options of imported recipes: the keys of mergekit that they come from."""

#: Comments by section and option.
COMMENTS: dict[tuple[str, ...], str] = {
    ("algorithm", "name"): "merge_method",
    ("algorithm", "weights"): "weight",
    ("algorithm", "scale"): "lambda",
    ("algorithm", "overrides"): "filters; the first match wins",
    ("algorithm", "by_depth"): "gradients and filters; the first match wins",
    ("algorithm", "scope"): "mergekit trims every tensor by itself",
    ("algorithm", "zero_sign"): "as mergekit",
    ("algorithm", "rescale"): "rescale",
    ("algorithm", "normalize"): "normalize",
    ("algorithm", "elect"): "the consensus of the method",
    ("algorithm", "mode"): "nuslerp_flatten, nuslerp_row_wise",
    ("algorithm", "iterations"): "max_iter",
    ("algorithm", "tolerance"): "tol",
    ("algorithm", "slices"): "slices",
    ("model_pool", "base"): "base_model",
    ("model_pool", "tokenizer"): "tokenizer_source, or tokenizer.source",
    ("model_pool", "tokens"): "tokenizer.tokens",
    ("model_pool", "chat_template"): "chat_template",
    ("output", "dtype"): "out_dtype, or else dtype; merges are computed in fp32",
    ("alignment", "config"): "mergekit does not compare configurations",
    ("alignment", "tokenizer"): "mergekit does not compare tokenizers",
    ("alignment", "matrices"): "mergekit merges fused and packed matrices as one tensor",
    ("alignment", "outliers"): "a layer may move anywhere",
    ("alignment", "dtype"): "without a dtype mergekit promotes different ones",
}
