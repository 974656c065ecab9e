"""Registers the spectral methods. Imports nothing heavy."""

from collections.abc import Iterator
from functools import partial

from fusion_core import AlgorithmSpec, PipelineSpec, hookimpl

_spec = partial(AlgorithmSpec, family="spectra and subspaces", needs_base=True, cost="matrices")


@hookimpl
def fusion_register_algorithms() -> Iterator[AlgorithmSpec]:
    """Register the transforms, the merges and the calibration."""
    yield from _transforms()
    yield from _merges()
    yield _spec(
        name="svc",
        stage="calibrate",
        summary="Scale a merge's singular values by how far experts share their directions.",
        formula="base + U diag(f s) V', U diag(s) V' = tau, f = K / sum of the experts' agreements",
        target="fusion_spectral.svc:Svc",
        config="fusion_spectral.config:SvcConfig",
        reference="arXiv:2602.05536",
    )


@hookimpl
def fusion_register_pipelines() -> Iterator[PipelineSpec]:
    """Register OPCM, whose parts are a transform, a sum and a calibration."""
    yield PipelineSpec(
        name="opcm",
        summary="Add one expert after the other, each without the directions of those before it.",
        stages=(("project", {}), ("task-arithmetic", {"scale": 1.0}), ("rescale-norm", {})),
        reference="arXiv:2501.09522",
    )


def _transforms() -> Iterator[AlgorithmSpec]:
    yield _spec(
        name="orthogonalise",
        stage="transform",
        summary="Keep each task vector's largest components, made orthogonal across experts.",
        formula=(
            "P_k S_k Q_k' of its r / K largest components U_k S_k V_k', "
            "P = polar([U_1 ... U_K]), Q likewise"
        ),
        target="fusion_spectral.orthogonalise:Orthogonalise",
        config="fusion_spectral.config:OrthogonaliseConfig",
        reference="arXiv:2412.00081",
    )
    yield _spec(
        name="isotropise",
        stage="transform",
        summary="Give common directions and each expert's own directions the same strength.",
        formula=(
            "mean(s) * (U_k V_k' + U_0 V_0' / K), U_k V_k' own directions of tau_k and U_0 V_0' "
            "those of the sum, made orthonormal"
        ),
        target="fusion_spectral.iso:Isotropise",
        config="fusion_spectral.config:IsotropiseConfig",
        reference="arXiv:2502.04959",
    )
    yield _spec(
        name="disentangle",
        stage="transform",
        summary="Choose orthogonal or isotropic task vectors, and their scale, by their sum.",
        formula=(
            "scale * orthogonalise(tau_k) or scale * isotropise(tau_k), whichever sum is closest "
            "to the experts' predictions"
        ),
        target="fusion_spectral.disentangle:Disentangle",
        config="fusion_spectral.config:DisentangleConfig",
        needs_tasks="unlabeled",
        needs_tasks_unless="directions",
        cost="forward",
    )
    yield _spec(
        name="truncate",
        stage="transform",
        summary="Keep each task vector's largest singular components: the first step of STAR.",
        formula=(
            "the largest components U_k S_k V_k' of tau_k that reach `keep` of its nuclear norm, "
            "scaled to it"
        ),
        target="fusion_spectral.truncate:Truncate",
        config="fusion_spectral.config:TruncateConfig",
        reference="arXiv:2502.10339",
    )
    yield _spec(
        name="project",
        stage="transform",
        summary="Remove from every task vector the directions of those before it.",
        formula=(
            "tau_k less the diagonal and the first block of U' tau_k V, U S V' the sum of the "
            "results before k"
        ),
        target="fusion_spectral.project:Project",
        config="fusion_spectral.config:ProjectConfig",
        ordered=True,
        reference="arXiv:2501.09522",
    )
    yield _spec(
        name="core-space",
        stage="transform",
        summary="Merge in coordinates of bases that the experts share; for LoRA.",
        formula="L' tau_k R, L and R bases of all tau_k; a merge C of these becomes base + L C R'",
        target="fusion_spectral.core_space:CoreSpace",
        config="fusion_spectral.config:CoreSpaceConfig",
        reference="arXiv:2509.17786",
    )


def _merges() -> Iterator[AlgorithmSpec]:
    yield _spec(
        name="tsv-m",
        summary="Sum task vectors truncated and made orthogonal across experts.",
        formula="base + scale * sum of orthogonalise(tau_k)",
        target="fusion_spectral.tsv:TsvM",
        config="fusion_spectral.config:ScaleConfig",
        reference="arXiv:2412.00081",
    )
    yield _spec(
        name="iso-c",
        summary="Sum task vectors, and give every direction of the sum the same weight.",
        formula="base + scale * mean(s) * U V', U diag(s) V' = sum of tau_k",
        target="fusion_spectral.iso:IsoC",
        config="fusion_spectral.config:ScaleConfig",
        reference="arXiv:2502.04959",
    )
    yield _spec(
        name="iso-cts",
        summary="Give common directions and each expert's own directions the same weight.",
        formula=(
            "base + scale * mean(s) * U V' of the sum's largest directions and each tau_k's own"
        ),
        target="fusion_spectral.iso:IsoCts",
        config="fusion_spectral.config:IsoCtsConfig",
        reference="arXiv:2502.04959",
    )
    yield _spec(
        name="cart",
        summary="Add the low-rank part of each expert's difference from the average to it.",
        formula="A + scale * sum of the largest components of W_k - A, A = mean of W_k",
        target="fusion_spectral.cart:Cart",
        config="fusion_spectral.config:CartConfig",
        needs_base=False,
        reference="arXiv:2412.12153",
    )
    yield _spec(
        name="star",
        summary="Average task vectors truncated to their largest components and rescaled.",
        formula="base + mean of truncate(tau_k)",
        target="fusion_spectral.truncate:Star",
        config="fusion_spectral.config:StarConfig",
        reference="arXiv:2502.10339",
    )
    yield _spec(
        name="wudi",
        summary="Descend from the sum to the task vector that interferes least with the experts.",
        formula=(
            "base + tau, Adam from sum of tau_k on the sum of |(tau - tau_k) tau_k'|^2 / |tau_k|^2"
        ),
        target="fusion_spectral.wudi:Wudi",
        config="fusion_spectral.config:WudiConfig",
        reference="arXiv:2503.08099",
    )
    yield _spec(
        name="ace",
        summary="Solve least squares with input covariances estimated from the task vectors.",
        formula=(
            "base + (sum of D_k S_k) (sum of S_k + c)^-1, S_k = D_k' D_k + epsilon, "
            "D_k = tau_k centred"
        ),
        target="fusion_spectral.ace:Ace",
        config="fusion_spectral.config:AceConfig",
        reference="arXiv:2603.02945",
    )
    yield _spec(
        name="resmerge",
        summary="Merge residuals on the sphere, and correct by leading components; for RL.",
        formula=(
            "base + A + head_scale * a * |A| * H / |H|, A a spherical mean of tau_k - H_k, "
            "H_k the largest components of tau_k"
        ),
        target="fusion_spectral.resmerge:ResMerge",
        config="fusion_spectral.config:ResMergeConfig",
        reference="arXiv:2606.02252",
    )
    yield _spec(
        name="knots",
        summary="Merge by TIES in coordinates of a basis that the experts share; for LoRA.",
        formula=(
            "base + scale * U ties(S V_1', ..., S V_K'), U S [V_1' ... V_K'] = [tau_1 ... tau_K]"
        ),
        target="fusion_spectral.knots:Knots",
        config="fusion_spectral.config:KnotsConfig",
        reference="arXiv:2410.19735",
    )
    yield _spec(
        name="orthomerge",
        summary="Merge the experts' rotations of the base in their Lie algebra, and add residuals.",
        formula=(
            "base R + residual_scale * sum of (W_k - base R_k), "
            "cayley^-1(R) ~ sum of cayley^-1(R_k)"
        ),
        target="fusion_spectral.orthomerge:Orthomerge",
        config="fusion_spectral.config:OrthomergeConfig",
        reference="arXiv:2602.05943",
    )
    yield _spec(
        name="doge",
        summary="Sum masked task vectors with a correction learned outside the shared subspace.",
        formula="base + scale * sum of m_k * (tau_k + d) / |tau_k|, d learned to lower conflicts",
        target="fusion_spectral.doge:Doge",
        config="fusion_spectral.config:DogeConfig",
        min_experts=2,
        reference="arXiv:2501.01230",
    )
