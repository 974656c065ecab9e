"""Registers the spectral methods; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import AlgorithmSpec, hookimpl


@hookimpl
def fusion_register_algorithms() -> Iterator[AlgorithmSpec]:
    """Register what works on singular values and vectors: transforms, merges, a calibration."""
    yield from _transforms()
    yield from _merges()
    yield AlgorithmSpec(
        name="svc",
        stage="calibrate",
        summary="Scale a merge's singular values by what the experts share of their directions.",
        target="fusion_spectral.svc:Svc",
        config="fusion_spectral.config:SvcConfig",
        needs_base=True,
        reference="arXiv:2602.05536",
    )


def _transforms() -> Iterator[AlgorithmSpec]:
    yield AlgorithmSpec(
        name="orthogonalise",
        stage="transform",
        summary="Keep each task vector's largest singular components, made orthogonal to others'.",
        target="fusion_spectral.orthogonalise:Orthogonalise",
        config="fusion_spectral.config:OrthogonaliseConfig",
        needs_base=True,
        reference="arXiv:2412.00081",
    )
    yield AlgorithmSpec(
        name="truncate",
        stage="transform",
        summary="Keep each task vector's largest singular components: the first step of STAR.",
        target="fusion_spectral.truncate:Truncate",
        config="fusion_spectral.config:TruncateConfig",
        needs_base=True,
        reference="arXiv:2502.10339",
    )

    yield AlgorithmSpec(
        name="core-space",
        stage="transform",
        summary="Merge in coordinates of bases that the experts share; for LoRA.",
        target="fusion_spectral.core_space:CoreSpace",
        config="fusion_spectral.config:CoreSpaceConfig",
        needs_base=True,
        reference="arXiv:2509.17786",
    )


def _merges() -> Iterator[AlgorithmSpec]:
    yield AlgorithmSpec(
        name="tsv-m",
        summary="Sum task vectors cut to their largest components, made orthogonal across experts.",
        target="fusion_spectral.tsv:TsvM",
        config="fusion_spectral.config:ScaleConfig",
        needs_base=True,
        reference="arXiv:2412.00081",
    )
    yield AlgorithmSpec(
        name="iso-c",
        summary="Sum task vectors, and give every direction of the sum the same weight.",
        target="fusion_spectral.iso:IsoC",
        config="fusion_spectral.config:ScaleConfig",
        needs_base=True,
        reference="arXiv:2502.04959",
    )
    yield AlgorithmSpec(
        name="iso-cts",
        summary="Give common and each expert's own directions the same weight.",
        target="fusion_spectral.iso:IsoCts",
        config="fusion_spectral.config:IsoCtsConfig",
        needs_base=True,
        reference="arXiv:2502.04959",
    )
    yield AlgorithmSpec(
        name="cart",
        summary="Average, and add the low-rank part of each expert's difference from the average.",
        target="fusion_spectral.cart:Cart",
        config="fusion_spectral.config:CartConfig",
        reference="arXiv:2412.12153",
    )
    yield AlgorithmSpec(
        name="star",
        summary="Average task vectors cut to their largest components and scaled up again.",
        target="fusion_spectral.truncate:Star",
        config="fusion_spectral.config:StarConfig",
        needs_base=True,
        reference="arXiv:2502.10339",
    )
    yield AlgorithmSpec(
        name="wudi",
        summary="Descend from the sum to what interferes least with each expert's inputs.",
        target="fusion_spectral.wudi:Wudi",
        config="fusion_spectral.config:WudiConfig",
        needs_base=True,
        reference="arXiv:2503.08099",
    )
    yield AlgorithmSpec(
        name="ace",
        summary="Least squares with input covariances estimated from the task vectors.",
        target="fusion_spectral.ace:Ace",
        config="fusion_spectral.config:AceConfig",
        needs_base=True,
        reference="arXiv:2603.02945",
    )
    yield AlgorithmSpec(
        name="knots",
        summary="TIES in coordinates of a basis that the experts share; for LoRA.",
        target="fusion_spectral.knots:Knots",
        config="fusion_spectral.config:KnotsConfig",
        needs_base=True,
        reference="arXiv:2410.19735",
    )
    yield AlgorithmSpec(
        name="orthomerge",
        summary="Merge the base's rotations in their Lie algebra, and average what is left over.",
        target="fusion_spectral.orthomerge:Orthomerge",
        config="fusion_spectral.config:OrthomergeConfig",
        needs_base=True,
        reference="arXiv:2602.05943",
    )
    yield AlgorithmSpec(
        name="doge",
        summary="Sum masked task vectors with a correction learned outside the shared subspace.",
        target="fusion_spectral.doge:Doge",
        config="fusion_spectral.config:DogeConfig",
        needs_base=True,
        min_experts=2,
        reference="arXiv:2501.01230",
    )
