"""The architectures of mixtures: which dense models become which, and how each stores its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The feed-forward matrices of all supported dense models, in the order of mixtures.
PARTS = ("gate_proj", "up_proj", "down_proj")
_ATTENTION = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")
_INPUT_BIASES = ("q_proj.bias", "k_proj.bias", "v_proj.bias")
_NORMS_OF_HEADS = ("q_norm.weight", "k_norm.weight")


@dataclass(frozen=True)
class Target:
    """An architecture of transformers that is a mixture of experts."""

    #: its `model_type`
    name: str
    model_class: str
    #: the `model_type` of the dense models that it can be made of
    sources: tuple[str, ...]
    #: the tensors of attention that it can hold besides the four matrices
    attention: tuple[str, ...] = ()
    #: the module of the shared expert inside the feed-forward block; None without one
    shared: str | None = None
    #: the module of the shared expert's gate
    shared_gate: str | None = None
    #: a constant per expert that the router adds, which starts at zero
    router_bias: str | None = None
    #: whether it attends to a sliding window as Mistral does
    has_window: bool = False
    #: the block and its matrices in published files, where they differ from live models
    stored_block: str = "mlp"
    stored_parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def needed_tensors(self) -> tuple[str, ...]:
        """The tensors of a dense layer, without its feed-forward block, that the target needs."""
        attention = (f"self_attn.{name}" for name in _ATTENTION)
        return ("input_layernorm.weight", "post_attention_layernorm.weight", *attention)

    @property
    def layer_tensors(self) -> frozenset[str]:
        """The tensors of a dense layer, without its feed-forward block, that the target holds."""
        return frozenset((*self.needed_tensors, *(f"self_attn.{name}" for name in self.attention)))

    def expert_name(self, expert: str, part: str, *, is_packed: bool) -> str:
        """Return the name of an expert's matrix within its layer, by the expert's number.

        Packed experts have the names by which the packed tensor counts them.
        """
        if is_packed:
            return f"mlp.experts.{expert}.{part}.weight"
        return f"{self.stored_block}.experts.{expert}.{self.stored_parts.get(part, part)}.weight"

    def block(self, *, is_packed: bool) -> str:
        """Return the name of the feed-forward block in a layer."""
        return "mlp" if is_packed else self.stored_block


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="mixtral",
            model_class="MixtralForCausalLM",
            sources=("llama", "mistral"),
            has_window=True,
            stored_block="block_sparse_moe",
            stored_parts={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
        ),
        Target(
            name="qwen2_moe",
            model_class="Qwen2MoeForCausalLM",
            sources=("qwen2", "llama", "mistral"),
            attention=_INPUT_BIASES,
            shared="shared_expert",
            shared_gate="shared_expert_gate",
        ),
        Target(
            name="qwen3_moe",
            model_class="Qwen3MoeForCausalLM",
            sources=("qwen3",),
            attention=(*_INPUT_BIASES, "o_proj.bias", *_NORMS_OF_HEADS),
        ),
        Target(
            name="glm4_moe",
            model_class="Glm4MoeForCausalLM",
            sources=("llama", "mistral", "qwen2", "qwen3"),
            attention=(*_INPUT_BIASES, *_NORMS_OF_HEADS),
            shared="shared_experts",
            router_bias="e_score_correction_bias",
        ),
    )
}
#: The target of each dense model, without and with a shared expert.
_AUTOMATIC: Mapping[str, tuple[str, str]] = {
    "llama": ("mixtral", "qwen2_moe"),
    "mistral": ("mixtral", "qwen2_moe"),
    "qwen2": ("qwen2_moe", "qwen2_moe"),
    "qwen3": ("qwen3_moe", "glm4_moe"),
}


def choose_target(name: str, source: str, *, has_shared: bool) -> Target:
    """Return the target of a dense `model_type`; `name` is the option's, or `auto`.

    Raises `RecipeError` if the target cannot be made of such models, or takes no shared expert, or
    lacks the one that it needs.
    """
    if source not in _AUTOMATIC:
        raise RecipeError(
            f"algorithm: moe cannot make a mixture of models of type {source!r}: expected one of "
            f"{', '.join(_AUTOMATIC)}",
            hint="Their feed-forward blocks have the parts of a mixture that transformers knows.",
        )
    target = TARGETS[_AUTOMATIC[source][has_shared] if name == "auto" else name]
    if source not in target.sources:
        fitting = [other.name for other in TARGETS.values() if source in other.sources]
        raise RecipeError(
            f"algorithm.target: {target.name} cannot hold models of type {source!r}: expected "
            f"models of type {', '.join(target.sources)}",
            hint=f"Choose {' or '.join(fitting)}.",
        )
    if has_shared and target.shared is None:
        raise RecipeError(
            f"algorithm.shared_expert: {target.name} has no shared expert",
            hint="Leave the option out, or set algorithm.target to qwen2_moe or glm4_moe.",
        )
    if not has_shared and target.shared is not None:
        raise RecipeError(
            f"algorithm.shared_expert: missing, and {target.name} has a shared expert",
            hint="Name the model whose feed-forward blocks all tokens pass through.",
        )
    return target
