"""Registers the linear methods. Imports nothing heavy."""

from collections.abc import Iterator
from functools import partial

from fusion_core import AlgorithmSpec, hookimpl

_arithmetic_spec = partial(AlgorithmSpec, family="averages and arithmetic")
_sphere_spec = partial(AlgorithmSpec, family="on the sphere", cost="passes")
_parts_spec = partial(AlgorithmSpec, family="parts of models")


@hookimpl
def fusion_register_algorithms() -> Iterator[AlgorithmSpec]:
    """Register the merges by family, then the stages that scale task vectors."""
    yield from _arithmetic()
    yield from _spheres()
    yield from _parts()
    yield from _stages()


def _arithmetic() -> Iterator[AlgorithmSpec]:
    yield _arithmetic_spec(
        name="simple-average",
        summary="Average the experts.",
        formula="sum of W_k / K",
        target="fusion_linear.averages:SimpleAverage",
        config="fusion_linear.config:SimpleAverageConfig",
        cost="stream",
        reference="arXiv:2203.05482",
    )
    yield _arithmetic_spec(
        name="weighted-average",
        summary="Average or sum the experts, with one weight per expert.",
        formula="sum of w_k * W_k / sum of w_k",
        target="fusion_linear.averages:WeightedAverage",
        config="fusion_linear.config:WeightedAverageConfig",
        cost="stream",
        reference="arXiv:2203.05482",
    )
    yield _arithmetic_spec(
        name="task-arithmetic",
        summary="Add the scaled sum of the task vectors to the base.",
        formula="base + scale * sum of w_k * tau_k",
        target="fusion_linear.task_arithmetic:TaskArithmetic",
        config="fusion_linear.config:TaskArithmeticConfig",
        needs_base=True,
        cost="stream",
        reference="arXiv:2212.04089",
    )
    yield _arithmetic_spec(
        name="model-stock",
        summary="Interpolate between the base and the mean by the angles between task vectors.",
        formula="base + t * mean of tau_k, t = K c / (1 + (K - 1) c), c = mean cos(tau_j, tau_k)",
        target="fusion_linear.model_stock:ModelStock",
        config="fusion_linear.config:ModelStockConfig",
        needs_base=True,
        min_experts=2,
        cost="passes",
        reference="arXiv:2403.19522",
    )
    yield _arithmetic_spec(
        name="metagpt",
        summary="Add the task vectors to the base, weighted by their squared norms.",
        formula="base + sum of |tau_k|^2 * tau_k / sum of |tau_k|^2",
        target="fusion_linear.metagpt:MetaGpt",
        config="fusion_linear.config:MetaGptConfig",
        needs_base=True,
        cost="passes",
        reference="arXiv:2406.11385",
    )


def _spheres() -> Iterator[AlgorithmSpec]:
    yield _sphere_spec(
        name="slerp",
        summary="Interpolate along the arc between base and expert, or between two experts.",
        formula="(sin((1 - t) w) * first + sin(t w) * second) / sin(w), w = angle(first, second)",
        target="fusion_linear.slerp:Slerp",
        config="fusion_linear.config:SlerpConfig",
        ordered=True,
        max_experts=2,
    )
    yield _sphere_spec(
        name="nuslerp",
        summary="Interpolate along the arc between two experts or their task vectors, by weights.",
        formula=(
            "base + slerp(tau_1, tau_2) at t = w_2 / (w_1 + w_2); without a base slerp(W_1, W_2)"
        ),
        target="fusion_linear.slerp:NuSlerp",
        config="fusion_linear.config:NuSlerpConfig",
        min_experts=2,
        max_experts=2,
    )
    yield _sphere_spec(
        name="multi-slerp",
        summary="Combine the mean direction of the task vectors with their mean norm.",
        formula=(
            "base + sum of w_k |tau_k| * m / |m|, m = sum of w_k * tau_k / |tau_k|, sum of w_k = 1"
        ),
        target="fusion_linear.karcher:MultiSlerp",
        config="fusion_linear.config:MultiSlerpConfig",
    )
    yield _sphere_spec(
        name="karcher",
        summary="Combine the Karcher mean of the experts' directions with their mean norm.",
        formula="sum of w_k |W_k| * u, |u| = 1, u with the least sum of w_k * angle(u, W_k)^2",
        target="fusion_linear.karcher:Karcher",
        config="fusion_linear.config:KarcherConfig",
        reference="arXiv:2603.04972",
    )


def _parts() -> Iterator[AlgorithmSpec]:
    yield _parts_spec(
        name="passthrough",
        summary="Copy one model.",
        formula="W_k, or the base",
        target="fusion_linear.passthrough:Passthrough",
        config="fusion_linear.config:PassthroughConfig",
        cost="stream",
    )
    yield _parts_spec(
        name="nearswap",
        summary="Move every entry of the base towards one expert by at most t.",
        formula="base + clip(tau_1, -t, t)",
        target="fusion_linear.nearswap:Nearswap",
        config="fusion_linear.config:NearswapConfig",
        needs_base=True,
        max_experts=1,
        cost="stream",
    )
    yield _parts_spec(
        name="arcee-fusion",
        summary="Copy the most important entries of one expert into the base.",
        formula=(
            "base + tau_1 where |tau_1| * KL(softmax(W_1) || softmax(base)) >= median + 1.5 * IQR"
        ),
        target="fusion_linear.arcee_fusion:ArceeFusion",
        config="fusion_linear.config:ArceeFusionConfig",
        needs_base=True,
        max_experts=1,
        cost="passes",
    )
    yield _parts_spec(
        name="stack",
        summary="Stack layers of several models.",
        formula="layers a..b of one model, then c..d of another, and so on",
        target="fusion_linear.stack:Stack",
        config="fusion_linear.config:StackConfig",
        cost="stream",
    )


def _stages() -> Iterator[AlgorithmSpec]:
    yield _arithmetic_spec(
        name="normalise",
        stage="transform",
        summary="Scale every task vector to the mean of their norms.",
        formula="tau_k * mean of |tau_j| / |tau_k|",
        target="fusion_linear.norms:Normalise",
        config="fusion_linear.config:NormaliseConfig",
        needs_base=True,
        cost="passes",
    )
    yield _arithmetic_spec(
        name="depth-scale",
        stage="transform",
        summary="Scale task vectors by the depth of their layer, in tiers or along a curve.",
        formula="tau_k * scales[depth of the layer]",
        target="fusion_linear.depth:DepthScale",
        config="fusion_linear.config:DepthScaleConfig",
        needs_base=True,
        cost="stream",
        reference="arXiv:2602.09413",
    )
    yield _arithmetic_spec(
        name="lines",
        stage="calibrate",
        summary="Scale a merged task vector linearly from the first layer to the last.",
        formula="base + (alpha + beta * l / (L - 1)) * tau in layer l of L",
        target="fusion_linear.depth:Lines",
        config="fusion_linear.config:LinesConfig",
        needs_base=True,
        cost="passes",
        reference="arXiv:2410.17146",
    )
    yield _arithmetic_spec(
        name="rescale-norm",
        stage="calibrate",
        summary="Scale a merged task vector to the mean norm of the experts' task vectors.",
        formula="base + tau * mean of |tau_k| / |tau|",
        target="fusion_linear.norms:RescaleNorm",
        config="fusion_linear.config:RescaleNormConfig",
        needs_base=True,
        cost="passes",
    )
