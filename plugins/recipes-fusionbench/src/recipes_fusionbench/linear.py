"""Averages, interpolations and task arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recipes_fusionbench.options import target_of

if TYPE_CHECKING:
    from recipes_fusionbench.fusion import Fusion


_FOR_CAUSAL_LM = {
    *("SimpleAverageForCausalLM", "SimpleAverageForLlama", "TaskArithmeticForCausalLM"),
    *("TaskArithmeticForLlama", "TiesMergingForCausalLM"),
}


#: Tensors of OpenCLIP, which the release's configuration ignores.
_OPEN_CLIP = {
    f"model.{name}"
    for name in (
        *("positional_embedding", "text_projection", "logit_scale", "token_embedding.weight"),
        *("ln_final.weight", "ln_final.bias"),
    )
}


def simple_average(fusion: Fusion) -> None:
    """Translate the mean of all models."""
    fusion.options.ignore("inplace", "show_pbar")
    fusion.add("simple-average", **backbone(fusion))


def weighted_average(fusion: Fusion) -> None:
    """Translate a weighted mean or sum, whose weights are in the order of the pool."""
    given, experts = fusion.options, fusion.models.experts
    given.ignore("verbose")
    if not given.has("normalize"):
        given.refuse("normalize", "missing")
    normalize = given.switch("normalize", default=True)
    weights = given.take("weights", [])
    if not isinstance(weights, list) or not all(map(_is_number, weights)):
        given.refuse("weights", "expected a list of numbers")
    elif len(weights) != len(experts):
        reason = f"expected one per model ({', '.join(experts)}), got {len(weights)}"
        given.refuse("weights", reason)
    elif normalize and sum(weights) == 0:
        given.refuse("weights", "their sum is 0, by which normalize divides")
    else:
        by_name = dict(zip(experts, weights, strict=True))
        fusion.add("weighted-average", weights=by_name, normalize=normalize)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def task_arithmetic(fusion: Fusion) -> None:
    """Translate a sum of task vectors."""
    fusion.options.ignore("inplace", "show_pbar")
    scale = fusion.options.number("scaling_factor")
    fusion.add("task-arithmetic", scale=scale, **backbone(fusion))


def backbone(fusion: Fusion) -> dict[str, Any]:
    """Return the options of `merge_backbone`, and take the directory of methods for causal LMs."""
    given = fusion.options
    if target_of(given.values) not in _FOR_CAUSAL_LM:
        return {}
    fusion.take_output()
    if not given.switch("merge_backbone", default=False):
        return {}
    fusion.models.require_base("method.merge_backbone")
    return {"only": "model.layers.*"}


def slerp(fusion: Fusion) -> None:
    """Translate the interpolation along the arc between two models."""
    given = fusion.options
    given.ignore("show_pbar")
    given.expect("DOT_THRESHOLD", 0.9995, reason="slerp has the threshold 0.9995")
    given.expect("epsilon", 1e-8, reason="has no counterpart")
    if target_of(given.values) == "SlerpForCausalLM":
        fusion.take_output()
    fusion.add("slerp", t=_position(fusion))


def _position(fusion: Fusion) -> float:
    """Return the position between two models, of which a base is always the first here."""
    given, names = fusion.options, fusion.models.names
    t = given.number("t")
    if not 0 <= t <= 1:
        given.refuse("t", f"expected a number from 0 to 1, got {t:g}")
    if len(names) != 2:  # noqa: PLR2004 - two models
        given.refuse("", f"takes exactly two models, got {len(names)}: {', '.join(names)}")
    return 1 - t if names and names[-1] == "_pretrained_" else t


def interpolation(fusion: Fusion) -> None:
    """Translate the interpolation in a straight line between two models."""
    given, experts = fusion.options, fusion.models.experts
    given.warn("", "FusionBench 0.2.33 itself stops at this method, by a wrong assertion")
    t = _position(fusion)
    if fusion.models.has_base:
        fusion.add("task-arithmetic", scale=t)
    elif len(experts) == 2:  # noqa: PLR2004
        weights = dict(zip(experts, (1 - t, t), strict=True))
        fusion.add("weighted-average", weights=weights, normalize=False)


def expo(fusion: Fusion) -> None:
    """Translate extrapolation from the base beyond the mean of all models."""
    factor = fusion.options.number("extrapolation_factor")
    fusion.add("task-arithmetic", scale=(1 + factor) / len(fusion.models.experts))


def model_stock(fusion: Fusion) -> None:
    """Translate Model Stock."""
    given = fusion.options
    ignored = given.texts("ignore_keys")
    if {*ignored} - _OPEN_CLIP:
        reason = "FusionBench averages these tensors, and model-stock has one ratio for all"
        given.refuse("ignore_keys", reason)
    elif ignored:
        given.warn("ignore_keys", "ignored: these are tensors of OpenCLIP")
    fusion.take_output()
    reason = "FusionBench adds 1e-8 to products of norms, which matters for tiny task vectors"
    given.warn("", reason)
    is_pair = len(fusion.models.experts) == 2  # noqa: PLR2004 - whose mean angle is their angle
    mean_of = {} if is_pair else {"mean_of": "angles"}
    fusion.add("model-stock", scope="tensor", **mean_of)


def dummy(fusion: Fusion) -> None:
    """Translate the method that returns the pretrained model, or else the first one."""
    copied = "base" if fusion.models.has_base else fusion.models.experts[0]
    fusion.add("passthrough", model=copied)
