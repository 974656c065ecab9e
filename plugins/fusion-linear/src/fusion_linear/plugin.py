"""Registers the linear methods; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import AlgorithmSpec, hookimpl

_ARITHMETIC = "averages and arithmetic"
_SPHERES = "on the sphere"
_PARTS = "parts of models"


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
        family=_ARITHMETIC,
        summary="The mean of the experts.",
        formula="sum of W_k / K",
        target="fusion_linear.averages:SimpleAverage",
        config="fusion_linear.config:SimpleAverageConfig",
        cost="stream",
        reference="arXiv:2203.05482",
    )
    yield AlgorithmSpec(
        name="weighted-average",
        family=_ARITHMETIC,
        summary="A weighted mean, or weighted sum, of the experts.",
        formula="sum of w_k * W_k / sum of w_k",
        target="fusion_linear.averages:WeightedAverage",
        config="fusion_linear.config:WeightedAverageConfig",
        cost="stream",
        reference="arXiv:2203.05482",
    )
    yield AlgorithmSpec(
        name="task-arithmetic",
        family=_ARITHMETIC,
        summary="The base plus the scaled sum of the task vectors.",
        formula="base + scale * sum of w_k * tau_k",
        target="fusion_linear.task_arithmetic:TaskArithmetic",
        config="fusion_linear.config:TaskArithmeticConfig",
        needs_base=True,
        cost="stream",
        reference="arXiv:2212.04089",
    )
    yield AlgorithmSpec(
        name="model-stock",
        family=_ARITHMETIC,
        summary="Between the base and the mean, as the angles between task vectors say.",
        formula="base + t * mean of tau_k, t = K c / (1 + (K - 1) c), c = mean cos(tau_j, tau_k)",
        target="fusion_linear.model_stock:ModelStock",
        config="fusion_linear.config:ModelStockConfig",
        needs_base=True,
        min_experts=2,
        cost="passes",
        reference="arXiv:2403.19522",
    )
    yield AlgorithmSpec(
        name="metagpt",
        family=_ARITHMETIC,
        summary="The base plus the task vectors, weighted by their squared norms.",
        formula="base + sum of |tau_k|^2 * tau_k / sum of |tau_k|^2",
        target="fusion_linear.metagpt:MetaGpt",
        config="fusion_linear.config:MetaGptConfig",
        needs_base=True,
        cost="passes",
        reference="arXiv:2406.11385",
    )


def _on_the_sphere() -> Iterator[AlgorithmSpec]:
    yield AlgorithmSpec(
        name="slerp",
        family=_SPHERES,
        summary="Along the arc between two models: base and expert, or two experts.",
        formula="(sin((1 - t) w) * first + sin(t w) * second) / sin(w), w = angle(first, second)",
        target="fusion_linear.slerp:Slerp",
        config="fusion_linear.config:SlerpConfig",
        ordered=True,
        max_experts=2,
        cost="passes",
    )
    yield AlgorithmSpec(
        name="nuslerp",
        family=_SPHERES,
        summary="Along the arc between two experts, or two task vectors, by weights.",
        formula=(
            "base + slerp(tau_1, tau_2) at t = w_2 / (w_1 + w_2); without a base slerp(W_1, W_2)"
        ),
        target="fusion_linear.slerp:NuSlerp",
        config="fusion_linear.config:NuSlerpConfig",
        min_experts=2,
        max_experts=2,
        cost="passes",
    )
    yield AlgorithmSpec(
        name="multi-slerp",
        family=_SPHERES,
        summary="The mean of the task vectors' directions, with the mean of their norms.",
        formula=(
            "base + sum of w_k |tau_k| * m / |m|, m = sum of w_k * tau_k / |tau_k|, sum of w_k = 1"
        ),
        target="fusion_linear.karcher:MultiSlerp",
        config="fusion_linear.config:MultiSlerpConfig",
        cost="passes",
    )
    yield AlgorithmSpec(
        name="karcher",
        family=_SPHERES,
        summary="The Karcher mean of the experts' directions, with the mean of their norms.",
        formula="sum of w_k |W_k| * the u, |u| = 1, with the least sum of w_k * angle(u, W_k)^2",
        target="fusion_linear.karcher:Karcher",
        config="fusion_linear.config:KarcherConfig",
        cost="passes",
        reference="arXiv:2603.04972",
    )


def _of_one_expert() -> Iterator[AlgorithmSpec]:
    yield AlgorithmSpec(
        name="passthrough",
        family=_PARTS,
        summary="A copy of one model.",
        formula="W_k, or the base",
        target="fusion_linear.passthrough:Passthrough",
        config="fusion_linear.config:PassthroughConfig",
        cost="stream",
    )
    yield AlgorithmSpec(
        name="nearswap",
        family=_PARTS,
        summary="The base, moved towards one expert by no more than t an entry.",
        formula="base + clip(tau_1, -t, t)",
        target="fusion_linear.nearswap:Nearswap",
        config="fusion_linear.config:NearswapConfig",
        needs_base=True,
        max_experts=1,
        cost="stream",
    )
    yield AlgorithmSpec(
        name="arcee-fusion",
        family=_PARTS,
        summary="The base, with the entries of one expert that matter most.",
        formula=(
            "base + tau_1 where |tau_1| * KL(softmax(W_1) || softmax(base)) >= median + 1.5 * IQR"
        ),
        target="fusion_linear.arcee_fusion:ArceeFusion",
        config="fusion_linear.config:ArceeFusionConfig",
        needs_base=True,
        max_experts=1,
        cost="passes",
    )


def _of_layers() -> Iterator[AlgorithmSpec]:
    yield AlgorithmSpec(
        name="stack",
        family=_PARTS,
        summary="Layers of several models one after another.",
        formula="layers a..b of one model, then c..d of another; before and after, what is theirs",
        target="fusion_linear.stack:Stack",
        config="fusion_linear.config:StackConfig",
        cost="stream",
    )


def _stages() -> Iterator[AlgorithmSpec]:
    yield AlgorithmSpec(
        name="normalise",
        stage="transform",
        family=_ARITHMETIC,
        summary="Scale every task vector to the mean of their norms.",
        formula="tau_k * mean of |tau_j| / |tau_k|",
        target="fusion_linear.norms:Normalise",
        config="fusion_linear.config:NormaliseConfig",
        needs_base=True,
        cost="passes",
    )
    yield AlgorithmSpec(
        name="depth-scale",
        stage="transform",
        family=_ARITHMETIC,
        summary="Scale task vectors by the depth of their layer, in tiers or along a curve.",
        formula="tau_k * scales[depth of the layer]",
        target="fusion_linear.depth:DepthScale",
        config="fusion_linear.config:DepthScaleConfig",
        needs_base=True,
        cost="stream",
        reference="arXiv:2602.09413",
    )
    yield AlgorithmSpec(
        name="lines",
        stage="calibrate",
        family=_ARITHMETIC,
        summary="Scale a merged task vector linearly from the first layer to the last.",
        formula="base + (alpha + beta * l / (L - 1)) * tau in layer l of L",
        target="fusion_linear.depth:Lines",
        config="fusion_linear.config:LinesConfig",
        needs_base=True,
        cost="passes",
        reference="arXiv:2410.17146",
    )
    yield AlgorithmSpec(
        name="rescale-norm",
        stage="calibrate",
        family=_ARITHMETIC,
        summary="Scale a merged task vector to the mean norm of the experts'.",
        formula="base + tau * mean of |tau_k| / |tau|",
        target="fusion_linear.norms:RescaleNorm",
        config="fusion_linear.config:RescaleNormConfig",
        needs_base=True,
        cost="passes",
    )
