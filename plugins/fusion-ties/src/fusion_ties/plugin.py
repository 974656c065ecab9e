"""Registers TIES; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import AlgorithmSpec, hookimpl


@hookimpl
def fusion_register_algorithms() -> Iterator[AlgorithmSpec]:
    """Register the sparsifying and sign-electing methods."""
    yield AlgorithmSpec(
        name="ties",
        summary="Trim task vectors, elect a sign for every entry, merge what agrees.",
        target="fusion_ties.ties:Ties",
        config="fusion_ties.config:TiesConfig",
        needs_base=True,
        reference="arXiv:2306.01708",
    )
