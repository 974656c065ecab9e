"""FusionBench's methods by class, and their translation to algorithms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recipes_fusionbench import adaptive, linear, sparse, spectral
from recipes_fusionbench.fusion import Fusion
from recipes_fusionbench.options import class_of

if TYPE_CHECKING:
    from collections.abc import Callable


def _svc(fusion: Fusion) -> None:
    scale = fusion.options.number("scaling_factor")
    fusion.add("task-arithmetic", scale=scale)
    _add_svc(fusion)


def _svc_after(fusion: Fusion) -> None:
    base = Fusion(fusion.options.section("base_method"), fusion.models)
    if translate(base):
        last = base.stages[-1]["name"] if base.stages else ""
        if base.data or last == "emr":
            base.options.refuse("", "cannot be calibrated by svc here")
        if last in {"iso-c", "iso-cts"}:
            reason = "all singular values are equal, so that the directions of svc are arbitrary"
            base.options.refuse("", reason)
        fusion.stages += base.stages
        _add_svc(fusion)


def _add_svc(fusion: Fusion) -> None:
    fusion.options.ignore("accelerator")
    alpha = fusion.options.number("alpha")
    if alpha <= 0:
        fusion.options.refuse("alpha", f"expected a number above 0, got {alpha:g}")
    fusion.add("svc", alpha=alpha, **spectral.AS_STORED)


@dataclass(frozen=True)
class Method:
    """A method of FusionBench: whether it needs a base, and its translation."""

    translate: Callable[[Fusion], None]
    needs_base: bool = True


#: Methods by the name of their class.
METHODS = {
    "SimpleAverageAlgorithm": Method(linear.simple_average, needs_base=False),
    "SimpleAverageForCausalLM": Method(linear.simple_average, needs_base=False),
    "SimpleAverageForLlama": Method(linear.simple_average, needs_base=False),
    "WeightedAverageAlgorithm": Method(linear.weighted_average, needs_base=False),
    "LinearInterpolationAlgorithm": Method(linear.interpolation, needs_base=False),
    "SlerpMergeAlgorithm": Method(linear.slerp, needs_base=False),
    "SlerpForCausalLM": Method(linear.slerp, needs_base=False),
    "ExPOAlgorithm": Method(linear.expo),
    "TaskArithmeticAlgorithm": Method(linear.task_arithmetic),
    "TaskArithmeticForCausalLM": Method(linear.task_arithmetic),
    "TaskArithmeticForLlama": Method(linear.task_arithmetic),
    "TiesMergingAlgorithm": Method(sparse.ties),
    "TiesMergingForCausalLM": Method(sparse.ties),
    "DareSimpleAverage": Method(sparse.dare),
    "DareTaskArithmetic": Method(sparse.dare),
    "DareTiesMerging": Method(sparse.dare_ties),
    "MagMaxAlgorithm": Method(sparse.magmax),
    "ModelStock": Method(linear.model_stock),
    "EMRMerging": Method(sparse.emr),
    "TaskSingularVectorMerging": Method(spectral.tsv_m),
    "ISO_C_Merge": Method(spectral.iso_c),
    "IsotropicMergingInCommonSubspace": Method(spectral.iso_c),
    "ISO_CTS_Merge": Method(spectral.iso_cts),
    "IsotropicMergingInCommonAndTaskSubspace": Method(spectral.iso_cts),
    "WUDIMerging": Method(spectral.wudi),
    "DOGE_TA_Algorithm": Method(spectral.doge),
    "OPCM": Method(spectral.opcm),
    "OPCMForCLIP": Method(spectral.opcm),
    "SingularValueCalibrationArithmeticTask": Method(_svc),
    "SingularValueCalibrationWithBaseMethod": Method(_svc_after),
    "FisherMergingForCLIPVisionModel": Method(adaptive.fisher),
    "FisherMergingAlgorithmForGPT2": Method(adaptive.fisher),
    "RegMeanAlgorithmForCLIP": Method(adaptive.regmean("regmean", transposed=True)),
    "RegMeanAlgorithmForGPT2": Method(adaptive.regmean("regmean", transposed=False)),
    "RegMeanAlgorithmForCLIPPlusPlus": Method(
        adaptive.regmean("regmean-plus-plus", transposed=True, skip="*post_layernorm*")
    ),
    "CLIPLayerWiseAdaMergingAlgorithm": Method(adaptive.adamerging("layer")),
    "CLIPTaskWiseAdaMergingAlgorithm": Method(adaptive.adamerging("model")),
    "CLIPLayerWiseAdaMergingSurgeryAlgorithm": Method(adaptive.adamerging_with_surgery),
    "GPT2LayerWiseAdaMergingAlgorithm": Method(
        adaptive.language_adamerging("it leaves dropout on while it learns")
    ),
    "FlanT5LayerWiseAdaMergingAlgorithm": Method(
        adaptive.language_adamerging("it starts the decoder with token 1, not with the model's own")
    ),
    "DummyAlgorithm": Method(linear.dummy, needs_base=False),
}

#: Methods that older configurations choose by `name`.
_LEGACY = {
    "clip_layer_wise_adamerging": "CLIPLayerWiseAdaMergingAlgorithm",
    "clip_task_wise_adamerging": "CLIPTaskWiseAdaMergingAlgorithm",
    "clip_layer_wise_adamerging_surgery": "CLIPLayerWiseAdaMergingSurgeryAlgorithm",
}

#: Methods whose counterpart gives other values, with the reason.
_DIFFERENT = {
    "TallMaskTaskArithmeticAlgorithm": (
        "its masks compare a task vector with the pretrained weights, not with zero as the paper "
        "does; consensus with task_masks is the paper's method"
    ),
    "WeightedAverageForLLama": "FusionBench 0.2.33 cannot load its models; use weighted_average",
}


def translate(fusion: Fusion) -> bool:
    """Translate a method with its options. Returns False if it has no counterpart."""
    given = fusion.options
    name = class_of(given.values, "name")
    name = _LEGACY.get(name, name)
    shown = name or given.values.get("_target_")
    if name not in METHODS:
        reason = f": {_DIFFERENT[name]}" if name in _DIFFERENT else ""
        given.refuse("", f"{shown} has no counterpart{reason}" if shown else "missing")
        return False
    if fusion.models.is_alone and name != "DummyAlgorithm":
        given.refuse("", "expected at least one model besides the pretrained one")
    if METHODS[name].needs_base:
        fusion.models.require_base(given.key)
    METHODS[name].translate(fusion)
    given.finish()
    return True
