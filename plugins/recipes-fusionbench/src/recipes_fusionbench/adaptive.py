"""Methods that use examples: Fisher merging, RegMean and AdaMerging."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from recipes_fusionbench.fusion import Fusion
    from recipes_fusionbench.options import Options


_REGEX = "regular expressions have no counterpart; use skip with glob patterns in a recipe"


def fisher(fusion: Fusion) -> None:
    """Translate Fisher merging, whose values differ: the estimators are not the same."""
    given = fusion.options
    fusion.data = "train_datasets"
    given.ignore("dataloader_kwargs", "batch_size", "num_workers", "cache_dir")
    given.expect("exclude_param_names_regex", reason=_REGEX)
    floor = given.number("minimal_fisher_weight")
    if floor <= 0:
        given.refuse("minimal_fisher_weight", f"expected a number above 0, got {floor:g}")
    reason = (
        "other values: FusionBench squares gradients summed over a batch and adds the minimum; "
        "fisher takes single examples, as the paper does, and raises to the minimum"
    )
    given.warn("", reason)
    fusion.add(
        "fisher",
        samples=given.count("num_fisher_examples"),
        normalize=given.switch("normalize_fisher_weight", default=True),
        floor=floor,
    )


def regmean(name: str, *, transposed: bool, **more: object) -> Callable[[Fusion], None]:
    """Return the translation of RegMean, or of RegMean++; `transposed` as in `nn.Linear`."""

    def translate_regmean(fusion: Fusion) -> None:
        given = fusion.options
        fusion.data = "train_datasets"
        given.ignore("dataloader_kwargs", "batch_size", "num_workers", "cache_dir")
        given.expect("exclude_param_names_regex", reason=_REGEX)
        if given.switch("weight_transpose", default=True) != transposed:
            given.refuse("weight_transpose", f"expected {transposed} for this model")
        ratio = given.number("reduce_non_diagonal_ratio")
        if not 0 <= ratio <= 1:
            given.refuse("reduce_non_diagonal_ratio", f"expected a fraction, got {ratio:g}")
        if not transposed:
            given.warn("", "FusionBench also counts the positions of padding")
        samples = given.count("num_regmean_examples")
        fusion.add(name, samples=samples, off_diagonal=ratio, ridge=0.0, **more)

    return translate_regmean


def adamerging(granularity: str) -> Callable[[Fusion], None]:
    """Return the translation of AdaMerging with coefficients per tensor or per model."""

    def translate_adamerging(fusion: Fusion) -> None:
        given = fusion.options
        fusion.data = "test_datasets"
        given.ignore("save_merging_weights", "merging_weights_save_path", "cache_dir", "devices")
        given.ignore("num_workers", "tie_weights", "strict", "name")
        given.expect("fast_dev_run", False, reason="true takes one step; set max_steps")
        for name in ("weights", "merging_weights_load_path"):
            given.expect(name, reason="coefficients of FusionBench have no names; learn them again")
        given.expect("variant", reason="has no counterpart")
        initial = 1 / len(fusion.models.experts)
        fusion.add(
            "adamerging",
            granularity=granularity,
            objective="entropy",
            **_adam(given),
            init=given.number("init_values", initial),
            steps=given.count("max_steps"),
            clamp=given.switch("clamp_weights", default=False),
            schedule="constant",
            precision="fp32",
        )
        given.warn("", "draws other batches than FusionBench, whose order is not fixed either")

    return translate_adamerging


def _adam(given: Options) -> dict[str, Any]:
    """Return the learning rate of Adam and the batch size, from a text or from a section."""
    if not isinstance(given.values.get("optimizer"), dict):
        given.expect("optimizer", "adam", reason="expected adam")
        return {"lr": given.number("lr"), "batch_size": given.count("batch_size")}
    optimizer, loader = given.section("optimizer"), given.section("dataloader_kwargs")
    if optimizer.values.get("_target_") != "torch.optim.Adam":
        optimizer.refuse("_target_", "expected torch.optim.Adam")
    loader.ignore("num_workers", "pin_memory", "shuffle")
    options = {"lr": optimizer.number("lr"), "batch_size": loader.count("batch_size", 1)}
    optimizer.finish()
    loader.finish()
    return options


def language_adamerging(difference: str) -> Callable[[Fusion], None]:
    """Return the translation of AdaMerging per tensor of language models, whose values differ."""

    def translate_language_adamerging(fusion: Fusion) -> None:
        objective = "lowers the entropy of a batch's mean logits, adamerging that of each example"
        fusion.options.warn("", f"other values: FusionBench {objective}; {difference}")
        adamerging("layer")(fusion)

    return translate_language_adamerging


def adamerging_with_surgery(fusion: Fusion) -> None:
    """Translate AdaMerging and, after it, one adapter per task."""
    given = fusion.options
    given.ignore("eval_iterations")
    steps = given.count("surgery_steps")
    adamerging("layer")(fusion)
    batch = fusion.stages[-1]["batch_size"]
    fusion.add("surgery", batch_size=batch, examples=batch * steps, steps=steps)
