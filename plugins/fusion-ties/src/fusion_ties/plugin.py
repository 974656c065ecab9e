"""Registers the sparsifying and sign-electing methods. Imports nothing heavy."""

from collections.abc import Iterator
from functools import partial

from fusion_core import AlgorithmSpec, hookimpl

_spec = partial(AlgorithmSpec, family="signs and sparsity", needs_base=True)


@hookimpl
def fusion_register_algorithms() -> Iterator[AlgorithmSpec]:
    """Register the sparsifying and sign-electing methods."""
    yield _spec(
        name="trim",
        stage="transform",
        summary="Keep the largest entries of each task vector: the first step of TIES.",
        formula="tau_k where |tau_k| is among its `density` largest",
        target="fusion_ties.transforms:Trim",
        config="fusion_ties.config:TrimConfig",
        cost="passes",
        reference="arXiv:2306.01708",
    )
    yield _spec(
        name="elect",
        stage="transform",
        summary="Zero entries without the elected sign: the second step of TIES.",
        formula="tau_k where sign(tau_k) = sign(sum of w_j * tau_j); where they differ if w_k < 0",
        target="fusion_ties.transforms:Elect",
        config="fusion_ties.config:ElectConfig",
        cost="passes",
        reference="arXiv:2306.01708",
    )
    yield _spec(
        name="drop",
        stage="transform",
        summary="Drop entries of each task vector at random: the first step of DARE.",
        formula="m_k * tau_k / density, m_k = 1 with probability `density`, else 0",
        target="fusion_ties.dropping:Drop",
        config="fusion_ties.config:DropConfig",
        cost="stream",
        reference="arXiv:2311.03099",
    )
    yield _spec(
        name="magprune",
        stage="transform",
        summary="Drop entries at random, small ones more often: the first step of DELLA.",
        formula=(
            "m_k * tau_k / p_k, "
            "m_k = 1 with probability p_k = density -+ epsilon by rank in its row"
        ),
        target="fusion_ties.dropping:MagPrune",
        config="fusion_ties.config:MagPruneConfig",
        cost="stream",
        reference="arXiv:2406.11617",
    )
    yield _spec(
        name="band",
        stage="transform",
        summary="Drop the largest and smallest entries: the first step of Model Breadcrumbs.",
        formula="tau_k where |tau_k| is among the `density` largest below its `gamma` largest",
        target="fusion_ties.transforms:Band",
        config="fusion_ties.config:BandConfig",
        cost="passes",
        reference="arXiv:2312.06795",
    )
    yield _spec(
        name="ties",
        summary="Trim task vectors, elect a sign for every entry, average the entries that agree.",
        formula=(
            "base + scale * mean of the t_k with sign(t_k) = sign(sum of w_j * t_j), t = trim(tau)"
        ),
        target="fusion_ties.ties:Ties",
        config="fusion_ties.config:TiesConfig",
        cost="passes",
        reference="arXiv:2306.01708",
    )
    yield _spec(
        name="dare",
        summary="Drop entries of task vectors at random, rescale the others, and sum.",
        formula="base + scale * sum of w_k * drop(tau_k)",
        target="fusion_ties.sparse:Dare",
        config="fusion_ties.config:DareConfig",
        cost="stream",
        reference="arXiv:2311.03099",
    )
    yield _spec(
        name="della",
        summary="Drop entries at random, small ones more often, average those that agree in sign.",
        formula=(
            "base + scale * mean of the t_k with sign(t_k) = sign(sum of w_j * t_j), "
            "t = magprune(tau)"
        ),
        target="fusion_ties.sparse:Della",
        config="fusion_ties.config:DellaConfig",
        cost="stream",
        reference="arXiv:2406.11617",
    )
    yield _spec(
        name="breadcrumbs",
        summary="Drop the largest and smallest entries of each task vector, and sum.",
        formula="base + scale * sum of w_k * band(tau_k)",
        target="fusion_ties.sparse:Breadcrumbs",
        config="fusion_ties.config:BreadcrumbsConfig",
        cost="passes",
        reference="arXiv:2312.06795",
    )
    yield _spec(
        name="sce",
        summary="Merge the most varying entries, weighted by energy, where signs agree.",
        formula=(
            "base + mean of the tau_k with sign(tau_k) = sign(sum of tau_j), weighted by |tau_k|^2"
        ),
        target="fusion_ties.sce:Sce",
        config="fusion_ties.config:SceConfig",
        cost="passes",
        reference="arXiv:2408.07990",
    )
    yield _spec(
        name="magmax",
        summary="Take the entry of largest magnitude from all task vectors.",
        formula="base + scale * the tau_k of largest |tau_k|, entry by entry",
        target="fusion_ties.electing:MagMax",
        config="fusion_ties.config:MagMaxConfig",
        cost="stream",
        reference="arXiv:2407.06322",
    )
    yield _spec(
        name="consensus",
        summary="Sum task vectors where the TALL masks of several experts agree.",
        formula=(
            "base + scale * S where |tau_k| >= tall_lambda |S - tau_k| in k experts, "
            "S = sum of tau_k"
        ),
        target="fusion_ties.electing:Consensus",
        config="fusion_ties.config:ConsensusConfig",
        min_experts=2,
        cost="stream",
        reference="arXiv:2405.07813",
    )
    yield _spec(
        name="pcb",
        summary="Average the entries that compete best within and between experts.",
        formula=(
            "base + scale * mean of tau_k, "
            "weighed by the largest exp(K |tau_k|^2) * tanh(tau_k * sum of tau_j)"
        ),
        target="fusion_ties.pcb:Pcb",
        config="fusion_ties.config:PcbConfig",
        cost="passes",
        reference="arXiv:2410.02396",
    )
    yield _spec(
        name="emr",
        summary="Merge one model, and save a scale and a mask (one bit per entry) per task.",
        formula=(
            "base + u, u = max |tau_k| of the elected sign; "
            "for task k base + lambda_k * u where tau_k u > 0"
        ),
        target="fusion_ties.emr:Emr",
        config="fusion_ties.config:EmrConfig",
        needs_task=True,
        cost="passes",
        reference="arXiv:2405.17461",
    )
    yield _spec(
        name="ram",
        summary="Average entries that several experts changed, and keep those of one whole.",
        formula=(
            "base + sum of c_k tau_k where |tau_k| > epsilon, c_k = 1/n for n > 1 experts, else "
            "1 + r * min(rho_k, alpha)"
        ),
        target="fusion_ties.ram:Ram",
        config="fusion_ties.config:RamConfig",
        cost="stream",
        reference="arXiv:2601.13572",
    )
