"""Registers the methods that merge in closed form from unlabeled data. Imports nothing heavy."""

from collections.abc import Iterator
from functools import partial

from fusion_core import AlgorithmSpec, hookimpl

_spec = partial(AlgorithmSpec, family="closed forms on data", needs_tasks="unlabeled")
_OBSERVES_LAYERS = (
    "logits() calls the model whenever it is called, and passes each call the attention_mask of "
    "its inputs"
)
_IN_ORDER = f"{_OBSERVES_LAYERS}; no call depends on the output of a later layer in an earlier call"


@hookimpl
def fusion_register_algorithms() -> Iterator[AlgorithmSpec]:
    """Register the merges and the calibration."""
    yield _spec(
        name="regmean",
        summary="Solve linear layers by least squares over their inputs on unlabeled data.",
        formula="(sum of W_k G_k) (sum of G_k)^-1, G_k = E[x x'] of the inputs of expert k's layer",
        target="fusion_regmean.regmean:RegMean",
        config="fusion_regmean.config:RegMeanConfig",
        task_requirements=_OBSERVES_LAYERS,
        cost="forward",
        reference="arXiv:2212.09849",
    )
    yield _spec(
        name="regmean-plus-plus",
        summary="Apply RegMean in forward order, to inputs from the merged layers before.",
        formula=("(sum of W_k G_k) (sum of G_k)^-1, G_k = E[x x'] of inputs from merged layers"),
        target="fusion_regmean.plus_plus:RegMeanPlusPlus",
        config="fusion_regmean.config:RegMeanConfig",
        task_requirements=_IN_ORDER,
        cost="forward",
        reference="arXiv:2508.03121",
    )
    yield _spec(
        name="fisher",
        summary="Average every parameter by its Fisher information on unlabeled data.",
        formula="sum of c_k F_k W_k / sum of c_k F_k, F_k = E[(d log p(y|x) / d W_k)^2]",
        target="fusion_regmean.fisher:Fisher",
        config="fusion_regmean.config:FisherConfig",
        cost="backward",
        reference="arXiv:2111.09832",
    )
    yield _spec(
        name="featcal",
        stage="calibrate",
        summary="Bring a merge's layers near to the experts' outputs, in forward order.",
        formula=(
            "the W with the least sum of E|W x - W_k x'|^2 / |E[x x']| + ridge * |W - anchor|^2"
        ),
        target="fusion_regmean.featcal:FeatCal",
        config="fusion_regmean.config:FeatCalConfig",
        needs_base=True,
        task_requirements=_IN_ORDER,
        cost="forward",
        reference="arXiv:2605.13030",
    )
    yield _spec(
        name="lot",
        summary="Solve for the task vectors of layers by least squares over their inputs.",
        formula=(
            "base + scale * (sum of tau_k G_k) (sum of G_k)^+, "
            "G_k = sum of x x' of expert k's inputs"
        ),
        target="fusion_regmean.lot:Lot",
        config="fusion_regmean.config:LotConfig",
        needs_base=True,
        task_requirements=_OBSERVES_LAYERS,
        cost="forward",
        reference="arXiv:2505.23859",
    )
    yield _spec(
        name="cat",
        summary="Sum task vectors without the parts that disturb other tasks on unlabeled data.",
        formula="base + scale * sum of tau_k less the output directions B_j of every other task j",
        target="fusion_regmean.cat:Cat",
        config="fusion_regmean.config:CatConfig",
        needs_base=True,
        task_requirements=_OBSERVES_LAYERS,
        ordered=True,
        cost="forward",
        reference="arXiv:2505.06977",
    )
