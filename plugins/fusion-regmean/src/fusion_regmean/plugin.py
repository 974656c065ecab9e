"""Registers the methods that merge in closed form from unlabeled data; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import AlgorithmSpec, hookimpl


@hookimpl
def fusion_register_algorithms() -> Iterator[AlgorithmSpec]:
    """Register RegMean, Fisher and their kin."""
    yield AlgorithmSpec(
        name="regmean",
        summary="Linear layers by least squares over their inputs on unlabeled data.",
        target="fusion_regmean.regmean:RegMean",
        config="fusion_regmean.config:RegMeanConfig",
        needs_tasks="unlabeled",
        reference="arXiv:2212.09849",
    )
    yield AlgorithmSpec(
        name="regmean-plus-plus",
        summary="RegMean in forward order: layers are given what merged layers before them make.",
        target="fusion_regmean.plus_plus:RegMeanPlusPlus",
        config="fusion_regmean.config:RegMeanConfig",
        needs_tasks="unlabeled",
        reference="arXiv:2508.03121",
    )
    yield AlgorithmSpec(
        name="fisher",
        summary="Average every parameter by its Fisher information on unlabeled data.",
        target="fusion_regmean.fisher:Fisher",
        config="fusion_regmean.config:FisherConfig",
        needs_tasks="unlabeled",
        reference="arXiv:2111.09832",
    )
    yield AlgorithmSpec(
        name="featcal",
        stage="calibrate",
        summary="Bring a merge's layers near to the experts' outputs, in forward order.",
        target="fusion_regmean.featcal:FeatCal",
        config="fusion_regmean.config:FeatCalConfig",
        needs_base=True,
        needs_tasks="unlabeled",
        reference="arXiv:2605.13030",
    )
    yield AlgorithmSpec(
        name="lot",
        summary="Task vectors of layers by least squares over their inputs on unlabeled data.",
        target="fusion_regmean.lot:Lot",
        config="fusion_regmean.config:LotConfig",
        needs_base=True,
        needs_tasks="unlabeled",
        reference="arXiv:2505.23859",
    )
    yield AlgorithmSpec(
        name="cat",
        summary="Task arithmetic, without what disturbs other tasks on unlabeled data.",
        target="fusion_regmean.cat:Cat",
        config="fusion_regmean.config:CatConfig",
        needs_base=True,
        needs_tasks="unlabeled",
        ordered=True,
        reference="arXiv:2505.06977",
    )
