"""Registers the linear methods; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import AlgorithmSpec, hookimpl


@hookimpl
def fusion_register_algorithms() -> Iterator[AlgorithmSpec]:
    """Register averages and task arithmetic."""
    yield AlgorithmSpec(
        name="simple-average",
        summary="The mean of the experts.",
        target="fusion_linear.averages:SimpleAverage",
        config="fusion_linear.config:SimpleAverageConfig",
        reference="arXiv:2203.05482",
    )
    yield AlgorithmSpec(
        name="weighted-average",
        summary="A weighted mean, or weighted sum, of the experts.",
        target="fusion_linear.averages:WeightedAverage",
        config="fusion_linear.config:WeightedAverageConfig",
        reference="arXiv:2203.05482",
    )
    yield AlgorithmSpec(
        name="task-arithmetic",
        summary="The base plus the scaled sum of the task vectors.",
        target="fusion_linear.task_arithmetic:TaskArithmetic",
        config="fusion_linear.config:TaskArithmeticConfig",
        needs_base=True,
        reference="arXiv:2212.04089",
    )
