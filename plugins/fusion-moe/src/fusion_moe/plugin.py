"""Registers `moe`, `smile` and `wemoe`. Imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import AlgorithmSpec, hookimpl


@hookimpl
def fusion_register_algorithms() -> Iterator[AlgorithmSpec]:
    """Register the mixtures of experts from dense models."""
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
    yield AlgorithmSpec(
        name="smile",
        family="mixtures of experts",
        summary="Let each linear layer choose among low-rank experts by its input.",
        formula="W x + b + sum of p_k(x) * (rank-r tau_k) x, p by the length of x in tau_k's space",
        target="fusion_moe.smile:Smile",
        config="fusion_moe.config:SmileConfig",
        needs_base=True,
        min_experts=2,
        modules_file="routers.safetensors",
        add_modules="fusion_moe.routers:add_routers",
        cost="matrices",
        reference="arXiv:2408.10174",
        example=("--pool", "mini8"),
    )
    yield AlgorithmSpec(
        name="wemoe",
        family="mixtures of experts",
        summary="Let each linear layer weight low-rank experts by its input, as learned.",
        formula="W x + b + sum of r_k(x) * (rank-r tau_k) x, r learned to predict as W_t",
        target="fusion_moe.wemoe:Wemoe",
        config="fusion_moe.config:WemoeConfig",
        needs_base=True,
        min_experts=2,
        needs_tasks="unlabeled",
        modules_file="routers.safetensors",
        add_modules="fusion_moe.routers:add_routers",
        cost="backward",
        reference="arXiv:2402.00433",
        example=("--pool", "mini8"),
    )
