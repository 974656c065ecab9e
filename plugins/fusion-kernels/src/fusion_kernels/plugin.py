"""Registers the kernels. Imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import KernelSpec, hookimpl

_MERGING = "fusion_core.weights.merging"


@hookimpl
def fusion_register_kernels() -> Iterator[KernelSpec]:
    """Register one kernel per loop."""
    yield KernelSpec(
        name="linear",
        summary="Weighted sums of experts or task vectors.",
        target="fusion_kernels.linear:LinearKernel",
        replaces=(f"{_MERGING}.linear:Linear.merge",),
    )
    yield KernelSpec(
        name="elect",
        summary="TIES: trim, elect signs, and merge the entries that agree.",
        target="fusion_kernels.electing:ElectingKernel",
        replaces=("fusion_ties.ties:Ties.merge", "fusion_ties.combining:DisjointMerge.merge"),
    )
    yield KernelSpec(
        name="trim",
        summary="Task vectors without their small entries.",
        target="fusion_kernels.trimming:TrimmingKernel",
        replaces=(f"{_MERGING}.trimming:TrimKernel.rows", "fusion_ties.transforms:Trim.rows"),
    )
    yield KernelSpec(
        name="count",
        summary="Search for exact thresholds: count the magnitudes in a window.",
        target="fusion_kernels.counting:CountingKernel",
        replaces=(f"{_MERGING}.selection:WindowCount",),
    )
    yield KernelSpec(
        name="votes",
        summary="Count the signs that entries elect.",
        target="fusion_kernels.voting:VotingKernel",
        replaces=(f"{_MERGING}.trimming:count_votes",),
    )
