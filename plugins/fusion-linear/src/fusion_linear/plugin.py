"""Registers the linear methods; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import AlgorithmSpec, hookimpl


@hookimpl
def fusion_register_algorithms() -> Iterator[AlgorithmSpec]:
    """Register what combines models linearly, and what scales task vectors."""
    yield from _combinations()
    yield from _on_the_sphere()
    yield from _of_one_expert()
    yield from _of_layers()
    yield from _stages()


def _combinations() -> Iterator[AlgorithmSpec]:
    yield AlgorithmSpec(
        name="simple-average",
        summary="The mean of the experts.",
        target="fusion_linear.averages:SimpleAverage",
        config="fusion_linear.config:SimpleAverageConfig",
        reference="arXiv:2203.05482",
    )
    yield AlgorithmSpec(
        name="weighted-average",
        summary="A weighted mean, or weighted sum, of the experts.",
        target="fusion_linear.averages:WeightedAverage",
        config="fusion_linear.config:WeightedAverageConfig",
        reference="arXiv:2203.05482",
    )
    yield AlgorithmSpec(
        name="task-arithmetic",
        summary="The base plus the scaled sum of the task vectors.",
        target="fusion_linear.task_arithmetic:TaskArithmetic",
        config="fusion_linear.config:TaskArithmeticConfig",
        needs_base=True,
        reference="arXiv:2212.04089",
    )
    yield AlgorithmSpec(
        name="model-stock",
        summary="Between the base and the mean, as the angles between task vectors say.",
        target="fusion_linear.model_stock:ModelStock",
        config="fusion_linear.config:ModelStockConfig",
        needs_base=True,
        min_experts=2,
        reference="arXiv:2403.19522",
    )
    yield AlgorithmSpec(
        name="metagpt",
        summary="The base plus the task vectors, weighted by their squared norms.",
        target="fusion_linear.metagpt:MetaGpt",
        config="fusion_linear.config:MetaGptConfig",
        needs_base=True,
        reference="arXiv:2406.11385",
    )


def _on_the_sphere() -> Iterator[AlgorithmSpec]:
    yield AlgorithmSpec(
        name="slerp",
        summary="Along the arc between two models: base and expert, or two experts.",
        target="fusion_linear.slerp:Slerp",
        config="fusion_linear.config:SlerpConfig",
        ordered=True,
        max_experts=2,
    )
    yield AlgorithmSpec(
        name="nuslerp",
        summary="Along the arc between two experts, or two task vectors, by weights.",
        target="fusion_linear.slerp:NuSlerp",
        config="fusion_linear.config:NuSlerpConfig",
        min_experts=2,
        max_experts=2,
    )
    yield AlgorithmSpec(
        name="multi-slerp",
        summary="The mean of the task vectors' directions, with the mean of their norms.",
        target="fusion_linear.karcher:MultiSlerp",
        config="fusion_linear.config:MultiSlerpConfig",
    )
    yield AlgorithmSpec(
        name="karcher",
        summary="The Karcher mean of the experts' directions, with the mean of their norms.",
        target="fusion_linear.karcher:Karcher",
        config="fusion_linear.config:KarcherConfig",
        reference="arXiv:2603.04972",
    )


def _of_one_expert() -> Iterator[AlgorithmSpec]:
    yield AlgorithmSpec(
        name="passthrough",
        summary="A copy of one model.",
        target="fusion_linear.passthrough:Passthrough",
        config="fusion_linear.config:PassthroughConfig",
    )
    yield AlgorithmSpec(
        name="nearswap",
        summary="The base, moved towards one expert by no more than t an entry.",
        target="fusion_linear.nearswap:Nearswap",
        config="fusion_linear.config:NearswapConfig",
        needs_base=True,
        max_experts=1,
    )
    yield AlgorithmSpec(
        name="arcee-fusion",
        summary="The base, with the entries of one expert that matter most.",
        target="fusion_linear.arcee_fusion:ArceeFusion",
        config="fusion_linear.config:ArceeFusionConfig",
        needs_base=True,
        max_experts=1,
    )


def _of_layers() -> Iterator[AlgorithmSpec]:
    yield AlgorithmSpec(
        name="stack",
        summary="Layers of several models one after another.",
        target="fusion_linear.stack:Stack",
        config="fusion_linear.config:StackConfig",
    )


def _stages() -> Iterator[AlgorithmSpec]:
    yield AlgorithmSpec(
        name="normalise",
        stage="transform",
        summary="Scale every task vector to the mean of their norms.",
        target="fusion_linear.norms:Normalise",
        config="fusion_linear.config:NormaliseConfig",
        needs_base=True,
    )
    yield AlgorithmSpec(
        name="depth-scale",
        stage="transform",
        summary="Scale task vectors by the depth of their layer, in tiers or along a curve.",
        target="fusion_linear.depth:DepthScale",
        config="fusion_linear.config:DepthScaleConfig",
        needs_base=True,
        reference="arXiv:2602.09413",
    )
    yield AlgorithmSpec(
        name="lines",
        stage="calibrate",
        summary="Scale a merged task vector linearly from the first layer to the last.",
        target="fusion_linear.depth:Lines",
        config="fusion_linear.config:LinesConfig",
        needs_base=True,
        reference="arXiv:2410.17146",
    )
    yield AlgorithmSpec(
        name="rescale-norm",
        stage="calibrate",
        summary="Scale a merged task vector to the mean norm of the experts'.",
        target="fusion_linear.norms:RescaleNorm",
        config="fusion_linear.config:RescaleNormConfig",
        needs_base=True,
    )
