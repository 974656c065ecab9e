"""Registers the kernels. Imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import KernelSpec, hookimpl

#: Loading takes 0.1 s of processor time, which kernels save on this many elements.
_SUMS, _OTHERS = 2**28, 2**26


@hookimpl
def fusion_register_kernels() -> Iterator[KernelSpec]:
    """Register one kernel per loop."""
    yield KernelSpec(
        name="weighted-sum",
        least_elements=_SUMS,
        summary="Weighted sums of experts or task vectors.",
        target="fusion_kernels.linear:WeightedSum",
        replaces=("fusion_core.weights.merging.linear:Linear.merge",),
    )
    yield KernelSpec(
        name="inner-products",
        least_elements=_OTHERS,
        summary="Inner products of experts or task vectors.",
        target="fusion_kernels.multiplying:InnerProducts",
        replaces=("fusion_linear.gram:InnerProducts",),
    )
    yield KernelSpec(
        name="surveyed-sum",
        least_elements=_OTHERS,
        summary="Weighted sums whose factors depend on inner products: slerp, model-stock.",
        target="fusion_kernels.linear:SurveyedSum",
        replaces=("fusion_linear.gram:GramCombination.merge",),
    )
    yield KernelSpec(
        name="average",
        least_elements=_SUMS,
        summary="Averages of experts.",
        target="fusion_kernels.linear:Average",
        replaces=("fusion_linear.averages:SimpleAverage.merge",),
    )
    yield KernelSpec(
        name="agreeing-mean",
        least_elements=_OTHERS,
        summary="TIES: trim, elect signs, and merge the entries that agree.",
        target="fusion_kernels.electing:AgreeingMean",
        replaces=("fusion_ties.ties:Ties.merge", "fusion_ties.combining:DisjointMerge.merge"),
    )
    yield KernelSpec(
        name="agreeing-entries",
        least_elements=_OTHERS,
        summary="Task vectors without the entries that lost the election of their sign.",
        target="fusion_kernels.electing:AgreeingEntries",
        replaces=(
            "fusion_thresholds.trimming:ElectKernel.rows",
            "fusion_ties.transforms:Elect.rows",
        ),
    )
    yield KernelSpec(
        name="large-entries",
        least_elements=_OTHERS,
        summary="Task vectors without their small entries.",
        target="fusion_kernels.trimming:TrimmedRows",
        replaces=("fusion_thresholds.trimming:TrimKernel.rows", "fusion_ties.transforms:Trim.rows"),
    )
    yield KernelSpec(
        name="trimmed-sums",
        least_elements=_OTHERS,
        summary="Sums of magnitudes, of all entries and of the large ones.",
        target="fusion_kernels.trimming:TrimmedSums",
        replaces=("fusion_ties.ties:TrimmedSums",),
    )
    yield KernelSpec(
        name="entries-in-band",
        least_elements=_OTHERS,
        summary="Task vectors without their largest and smallest entries.",
        target="fusion_kernels.choosing:BandOfMagnitudes",
        replaces=("fusion_ties.transforms:Band.rows",),
    )
    yield KernelSpec(
        name="band-sums",
        least_elements=_OTHERS,
        summary="Sums of magnitudes, of all entries and of those in a band.",
        target="fusion_kernels.choosing:BandSums",
        replaces=("fusion_ties.transforms:Bounds.sum_magnitudes",),
    )
    yield KernelSpec(
        name="random-entries",
        least_elements=_OTHERS,
        summary="Task vectors of which random entries are kept.",
        target="fusion_kernels.dropping:RandomEntries",
        replaces=("fusion_ties.dropping:Drop.rows",),
    )
    yield KernelSpec(
        name="random-sums",
        least_elements=_OTHERS,
        summary="Sums of magnitudes before and after random entries are dropped.",
        target="fusion_kernels.dropping:RandomSums",
        replaces=("fusion_ties.dropping:Drop.sum_magnitudes",),
    )
    yield KernelSpec(
        name="ranked-entries",
        least_elements=_OTHERS,
        summary="Task vectors of which random entries are kept, large ones more often.",
        target="fusion_kernels.dropping:RankedEntries",
        replaces=("fusion_ties.dropping:MagPrune.rows",),
    )
    yield KernelSpec(
        name="ranked-sums",
        least_elements=_OTHERS,
        summary="Sums of magnitudes before and after entries are dropped by rank.",
        target="fusion_kernels.dropping:RankedSums",
        replaces=("fusion_ties.dropping:MagPrune.sum_magnitudes",),
    )
    yield KernelSpec(
        name="largest-entries",
        least_elements=_OTHERS,
        summary="The entries of largest magnitude.",
        target="fusion_kernels.choosing:LargestEntries",
        replaces=("fusion_ties.electing:MagMax.merge",),
    )
    yield KernelSpec(
        name="masked-sum",
        least_elements=_OTHERS,
        summary="The sum of task vectors where enough masks agree.",
        target="fusion_kernels.choosing:MaskedSum",
        replaces=("fusion_ties.electing:ConsensusSum.merge",),
    )
    yield KernelSpec(
        name="shared-mean",
        least_elements=_OTHERS,
        summary="SCE: the mean of varying entries that agree in sign.",
        target="fusion_kernels.varying:SharedMean",
        replaces=("fusion_ties.sce:Sce.merge",),
    )
    yield KernelSpec(
        name="selected-squares",
        least_elements=_OTHERS,
        summary="Sums of squares of entries that vary between experts.",
        target="fusion_kernels.varying:SelectedSquares",
        replaces=("fusion_ties.sce:SelectedSquares",),
    )
    yield KernelSpec(
        name="deviations",
        least_elements=_OTHERS,
        summary="Standard deviations over the experts.",
        target="fusion_kernels.varying:Deviations",
        replaces=("fusion_ties.sce:deviations_of",),
    )
    yield KernelSpec(
        name="task-vectors",
        least_elements=_OTHERS,
        summary="Task vectors, from which thresholds are guessed.",
        target="fusion_kernels.choosing:TaskVectors",
        replaces=("fusion_thresholds.selection:task_vectors_of",),
    )
    yield KernelSpec(
        name="window-counts",
        least_elements=_OTHERS,
        summary="Search for exact thresholds: count the magnitudes in a window.",
        target="fusion_kernels.counting:WindowCounts",
        replaces=("fusion_thresholds.selection:WindowCount",),
    )
    yield KernelSpec(
        name="window-polls",
        least_elements=_OTHERS,
        summary="Search for exact thresholds, and count the signs that entries elect.",
        target="fusion_kernels.counting:WindowPolls",
        replaces=("fusion_thresholds.polling:WindowPoll",),
    )
    yield KernelSpec(
        name="votes",
        least_elements=_OTHERS,
        summary="Count the signs that entries elect.",
        target="fusion_kernels.electing:Votes",
        replaces=("fusion_thresholds.trimming:count_votes",),
    )
