"""Registers `moe`. Imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import AlgorithmSpec, hookimpl


@hookimpl
def fusion_register_algorithms() -> Iterator[AlgorithmSpec]:
    """Register the mixture of experts from dense models."""
    yield AlgorithmSpec(
        name="moe",
        family="mixtures of experts",
        summary="Make a mixture of experts from the feed-forward blocks of dense models.",
        formula="in every layer: sum of p_k(x) * MLP_k(x), p = softmax(router * x); the rest: base",
        target="fusion_moe.moe:Moe",
        config="fusion_moe.config:MoeConfig",
        needs_base=True,
        min_experts=2,
        ordered=True,
        cost="forward",
        example=("--pool", "lm-mini", "--set", "algorithm.gate=random"),
    )
