"""Options of `moe`, `smile` and `wemoe`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from fusion_adapting import LearningRate, SearchConfig
from fusion_core import ComponentConfig

#: The prompts of each expert, by its name.
Prompts = Mapping[
    str,
    Annotated[Sequence[Annotated[str, StringConstraints(min_length=1)]], Field(min_length=1)],
]


class MoeConfig(ComponentConfig):
    """Options of `moe`."""

    target: Literal["auto", "mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe"] = "auto"
    """The architecture of the mixture, as transformers names it; auto: mixtral for Llama and
    Mistral (qwen2_moe with a shared expert), qwen2_moe for Qwen2, qwen3_moe for Qwen3 (glm4_moe
    with a shared expert). glm4_moe is shaped like DeepSeek-V3, with ordinary attention."""
    gate: Literal["hidden", "last-hidden", "embeddings", "random"] = "hidden"
    """How an expert's row in each router is made, of length 1 unless it is random. hidden: the mean
    input of the layer's feed-forward block in the base, over the tokens of the expert's prompts.
    last-hidden: the mean input of the layer, at the last token of each prompt (mergekit's hidden).
    embeddings: the mean embedding of the tokens (mergekit's cheap_embed). random: standard normal
    numbers from the seed, without prompts."""
    prompts: Prompts = Field({}, examples=["{math: [2 + 2 =], code: ['def f(x):']}"])
    """Texts of the kind that each expert should receive, by expert; needless for random gates."""
    negative_prompts: Prompts = Field({})
    """Texts of the kind that an expert should not receive: their mean is subtracted."""
    experts_per_token: Annotated[int, Field(ge=1)] = 2
    """The number of experts that each token passes through, besides the shared expert."""
    shared_expert: str | None = None
    """The model whose feed-forward blocks all tokens pass through. Required by qwen2_moe, which
    weights its output by a gate of its own from its prompts (a half without prompts), and by
    glm4_moe, which adds the output as it is."""
    output_scale: Mapping[str, float] = Field({})
    """Factors of the outputs of experts, by name (mergekit's residual_scale); default: 1 each."""
    layout: Literal["separate", "packed"] = "separate"
    """Store one matrix per expert, as published files and save_pretrained do, or all experts of a
    layer in one tensor, as live models of transformers 5 do. transformers loads both."""


class SmileConfig(ComponentConfig):
    """Options of `smile`."""

    rank: Annotated[int, Field(ge=1)] = 32
    """The number of singular components that an expert keeps of each linear layer."""
    gate_rank: Annotated[int, Field(ge=1)] | None = None
    """The number of components that a router looks at, at most `rank`. Default: 16, or `rank` if
    that is lower."""
    experts_per_token: Annotated[int, Field(ge=1)] = 1
    """The number of experts that serve each token in each layer."""

    @model_validator(mode="after")
    def _check_ranks(self) -> Self:
        if self.gate_rank is not None and self.gate_rank > self.rank:
            raise ValueError(f"expected a gate_rank of at most rank, {self.rank}")
        return self

    @property
    def router_rank(self) -> int:
        """The number of components that a router looks at."""
        return min(self.rank, 16) if self.gate_rank is None else self.gate_rank


class WemoeConfig(SearchConfig):
    """Options of `wemoe`."""

    rank: Annotated[int, Field(ge=1)] = 32
    """The number of singular components that an expert keeps of each linear layer."""
    routed: Annotated[
        list[str] | None,
        Field(min_length=1),
        BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
    ] = None
    """Patterns of the tensors whose linear layers have a router, such as `*mlp*`; default: all. The
    other tensors are merged by task arithmetic."""
    init: float = 0.3
    """The weight of every expert before the search, and in all tensors without a router."""
    lr: LearningRate = 0.2
    """Learning rate of Adam for the gates: how far a step moves an expert's weight at most."""
    objective: Literal["entropy", "teacher"] = "teacher"
    """Minimise the entropy of the predictions (entropy), as the paper does, or their divergence
    from the predictions of each task's expert (teacher)."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """With `teacher`: temperature that softens both predictions before they are compared."""
