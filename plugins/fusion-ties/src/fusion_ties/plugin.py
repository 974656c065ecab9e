"""Registers the sparsifying and sign-electing methods; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import AlgorithmSpec, hookimpl


@hookimpl
def fusion_register_algorithms() -> Iterator[AlgorithmSpec]:
    """Register the sparsifying and sign-electing methods."""
    yield AlgorithmSpec(
        name="trim",
        stage="transform",
        summary="Keep the largest entries of each task vector: the first step of TIES.",
        target="fusion_ties.transforms:Trim",
        config="fusion_ties.config:TrimConfig",
        needs_base=True,
        reference="arXiv:2306.01708",
    )
    yield AlgorithmSpec(
        name="elect",
        stage="transform",
        summary="Zero what does not have the elected sign: the second step of TIES.",
        target="fusion_ties.transforms:Elect",
        config="fusion_ties.config:ElectConfig",
        needs_base=True,
        reference="arXiv:2306.01708",
    )
    yield AlgorithmSpec(
        name="drop",
        stage="transform",
        summary="Drop entries of each task vector by chance: the first step of DARE.",
        target="fusion_ties.dropping:Drop",
        config="fusion_ties.config:DropConfig",
        needs_base=True,
        reference="arXiv:2311.03099",
    )
    yield AlgorithmSpec(
        name="magprune",
        stage="transform",
        summary="Drop entries by chance, small ones more often: the first step of DELLA.",
        target="fusion_ties.dropping:MagPrune",
        config="fusion_ties.config:MagPruneConfig",
        needs_base=True,
        reference="arXiv:2406.11617",
    )
    yield AlgorithmSpec(
        name="band",
        stage="transform",
        summary="Drop both tails of each task vector: the first step of Model Breadcrumbs.",
        target="fusion_ties.transforms:Band",
        config="fusion_ties.config:BandConfig",
        needs_base=True,
        reference="arXiv:2312.06795",
    )
    yield AlgorithmSpec(
        name="ties",
        summary="Trim task vectors, elect a sign for every entry, merge what agrees.",
        target="fusion_ties.ties:Ties",
        config="fusion_ties.config:TiesConfig",
        needs_base=True,
        reference="arXiv:2306.01708",
    )
    yield AlgorithmSpec(
        name="dare",
        summary="Drop entries of task vectors by chance, rescale the others, and sum.",
        target="fusion_ties.sparse:Dare",
        config="fusion_ties.config:DareConfig",
        needs_base=True,
        reference="arXiv:2311.03099",
    )
    yield AlgorithmSpec(
        name="della",
        summary="Drop entries by chance, small ones more often, and merge what agrees in sign.",
        target="fusion_ties.sparse:Della",
        config="fusion_ties.config:DellaConfig",
        needs_base=True,
        reference="arXiv:2406.11617",
    )
    yield AlgorithmSpec(
        name="breadcrumbs",
        summary="Drop the largest and smallest entries of each task vector, and sum.",
        target="fusion_ties.sparse:Breadcrumbs",
        config="fusion_ties.config:BreadcrumbsConfig",
        needs_base=True,
        reference="arXiv:2312.06795",
    )
    yield AlgorithmSpec(
        name="sce",
        summary="Merge the most varying entries, weighted by energy, where signs agree.",
        target="fusion_ties.sce:Sce",
        config="fusion_ties.config:SceConfig",
        needs_base=True,
        reference="arXiv:2408.07990",
    )
    yield AlgorithmSpec(
        name="magmax",
        summary="Take the entry of largest magnitude from all task vectors.",
        target="fusion_ties.electing:MagMax",
        config="fusion_ties.config:MagMaxConfig",
        needs_base=True,
        reference="arXiv:2407.06322",
    )
    yield AlgorithmSpec(
        name="consensus",
        summary="Sum task vectors where the TALL masks of several experts agree.",
        target="fusion_ties.electing:Consensus",
        config="fusion_ties.config:ConsensusConfig",
        needs_base=True,
        min_experts=2,
        reference="arXiv:2405.07813",
    )
    yield AlgorithmSpec(
        name="pcb",
        summary="Average what competes best: strong in its expert, in line with the others.",
        target="fusion_ties.pcb:Pcb",
        config="fusion_ties.config:PcbConfig",
        needs_base=True,
        reference="arXiv:2410.02396",
    )
    yield AlgorithmSpec(
        name="emr",
        summary="One model, and for each task a mask of one bit an entry and a scale.",
        target="fusion_ties.emr:Emr",
        config="fusion_ties.config:EmrConfig",
        needs_base=True,
        reference="arXiv:2405.17461",
    )
