"""Registers `run-average`, `greedy-soup` and `fuse average`. Imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import AlgorithmSpec, CommandSpec, hookimpl

_FAMILY = "checkpoints of one run"


@hookimpl
def fusion_register_algorithms() -> Iterator[AlgorithmSpec]:
    """Register the averages."""
    yield AlgorithmSpec(
        name="run-average",
        summary="Average checkpoints of one training run, with weights by their steps.",
        family=_FAMILY,
        formula="sum of c_k * W_k; c from a learning-rate decay, an EMA, or equal",
        target="fusion_average.run_average:RunAverage",
        config="fusion_average.config:RunAverageConfig",
        ordered=True,
        cost="stream",
        reference="arXiv:2507.17634",
    )
    yield AlgorithmSpec(
        name="greedy-soup",
        summary="Average the models that improve the score of the average, best first.",
        family=_FAMILY,
        formula="mean of the chosen W_k",
        target="fusion_average.greedy:GreedySoup",
        config="fusion_average.config:GreedySoupConfig",
        needs_tasks="labeled",
        task_requirements="metrics with one unit and direction",
        cost="forward",
        reference="arXiv:2203.05482",
    )


@hookimpl
def fusion_register_commands() -> Iterator[CommandSpec]:
    """Register the command."""
    yield CommandSpec(
        name="average",
        summary="Average the checkpoints of a training run.",
        target="fusion_average.command:average",
    )
