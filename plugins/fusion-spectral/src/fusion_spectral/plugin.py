"""Registers the spectral methods; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import AlgorithmSpec, hookimpl


@hookimpl
def fusion_register_algorithms() -> Iterator[AlgorithmSpec]:
    """Register transforms and calibrations that work on singular values and vectors."""
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
        name="svc",
        stage="calibrate",
        summary="Scale a merge's singular values by what the experts share of their directions.",
        target="fusion_spectral.svc:Svc",
        config="fusion_spectral.config:SvcConfig",
        needs_base=True,
        reference="arXiv:2602.05536",
    )
