"""Registers TIES; imports nothing heavy."""

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
        name="ties",
        summary="Trim task vectors, elect a sign for every entry, merge what agrees.",
        target="fusion_ties.ties:Ties",
        config="fusion_ties.config:TiesConfig",
        needs_base=True,
        reference="arXiv:2306.01708",
    )
