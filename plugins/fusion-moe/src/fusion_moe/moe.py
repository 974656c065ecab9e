"""Make a mixture of experts from dense models."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Algorithm, Outline, RunContext
from fusion_core.errors import RecipeError
from fusion_core.weights import StateDictSource, WeightSource, as_weights, parse_safe_config
from fusion_moe.blueprint import Blueprint, Origin
from fusion_moe.config import MoeConfig
from fusion_moe.gates import compute_gates
from fusion_moe.mixture import MixtureSource
from fusion_moe.mixture_config import check_window, mixture_config, read_model_type
from fusion_moe.prompts import check_prompts, check_tokenizer
from fusion_moe.targets import choose_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion_core import ModelPool
    from fusion_moe.blueprint import Router

#: The name of the computed tensors among the sources; no model's, because it is empty.
_ROUTERS = ""
_FEWEST = 2


class Moe(Algorithm[MoeConfig]):
    """Make a mixture of experts from the feed-forward blocks of dense models.

    Formula: in every layer, sum over the chosen experts of p_k(x) * MLP_k(x), p the softmax of
    router * x over them (glm4_moe: sigmoids that are divided by their sum), x the block's input.
    qwen2_moe adds sigmoid(g * x) * MLP(x) of the shared expert, and glm4_moe adds MLP(x).
    Attention, norms and embeddings are the base's. Experts contribute nothing else.
    Options: `target`, `gate`, `prompts`, `negative_prompts`, `experts_per_token`, `shared_expert`,
    `output_scale`, `layout`.
    Source: mergekit-moe (no paper; after "sparse upcycling", arXiv:2212.05055). Equal to it with
    the gates `last-hidden` and `embeddings` in fp32. Different on purpose: a sliding window of
    Mistral stays, Llama in qwen2_moe gets no biases of zero, and nothing is added as noise.
    Shapes: those of Llama, Mistral, Qwen2 and Qwen3, equal in all models. Data: prompts.
    Cost: a copy; with gates from hidden states, the prompts' passes through the base in fp32.
    """

    config_class = MoeConfig

    def outline(self, pool: ModelPool[Any]) -> Outline:
        """Return the mixture's tensors and its configuration."""
        base, blueprint = self._read_base(pool), self._plan(pool)
        configure = partial(
            mixture_config,
            target=blueprint.target,
            experts=len(blueprint.experts),
            experts_per_token=self.config.experts_per_token,
            attention=blueprint.attention,
        )
        return Outline(
            blueprint.tensors,
            lambda config: configure({**config, "model_type": base["model_type"]}),
        )

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy mixture. Only gates from hidden states build a model, the base."""
        blueprint = self._plan(pool)
        start_token = self._read_base(pool).get("bos_token_id")
        gates = compute_gates(self.config, blueprint, pool, context, start_token=start_token)
        routers = {name: _fill_router(router, gates) for name, router in blueprint.routers.items()}
        names = dict.fromkeys(origin.model for origin in blueprint.origins.values())
        sources = {name: as_weights(pool.by_name[name], pool.base) for name in names}
        return blueprint.layout.pack(
            MixtureSource(
                {**sources, _ROUTERS: StateDictSource(routers, label="the routers")},
                {**blueprint.origins, **{name: Origin(_ROUTERS, name) for name in routers}},
            )
        )

    def _plan(self, pool: ModelPool[Any]) -> Blueprint:
        """Return the checked plan of the mixture; raise a `FusionError` for what does not fit."""
        shared = self.config.shared_expert
        if shared is not None and shared not in pool.experts:
            raise RecipeError(
                f"algorithm.shared_expert: unknown expert {shared!r}",
                hint=f"The experts are: {', '.join(pool.experts)}.",
            )
        experts = tuple(name for name in pool.experts if name != shared)
        self._check_counts(experts)
        check_prompts(self.config, experts, shared)
        check_tokenizer(self.config, pool)
        base = self._read_base(pool)
        target = choose_target(
            self.config.target, base["model_type"], has_shared=shared is not None
        )
        check_window(base, target)
        blueprint = Blueprint(
            target,
            pool.reference.infos,
            experts,
            shared,
            self.config.layout == "packed",
            self.config.output_scale,
        )
        blueprint.check()
        return blueprint

    def _check_counts(self, experts: tuple[str, ...]) -> None:
        """Raise `RecipeError` for too few experts to choose from."""
        if len(experts) < _FEWEST:
            raise RecipeError(
                f"algorithm: a mixture needs at least two experts besides the shared one, got "
                f"{', '.join(experts) or 'none'}",
                hint="Add models to model_pool.models. The same path may have several names.",
            )
        if self.config.experts_per_token > len(experts):
            raise RecipeError(
                f"algorithm.experts_per_token: {self.config.experts_per_token} is more than the "
                f"{len(experts)} experts that a token can pass through"
            )

    @staticmethod
    def _read_base(pool: ModelPool[Any]) -> dict[str, Any]:
        """Return the base's configuration; raise `RecipeError` for models of another type."""
        files = pool.side_files()
        configs = {name: parse_safe_config(files.get(name, {}), name) for name in pool.by_name}
        base = configs.pop("base")
        model_type = read_model_type(base, "the base")
        assert base is not None  # noqa: S101 - it has a model_type
        for name, config in configs.items():
            other = (config or {}).get("model_type", model_type)  # an adapter has none
            if other != model_type:
                raise RecipeError(
                    f"model_pool.models.{name}: expected a model of the base's type "
                    f"{model_type!r}, got {other!r}",
                    hint="The blocks of a mixture have one architecture. Leave that model out.",
                )
        return base


def _fill_router(router: Router, gates: Mapping[str, Tensor]) -> Tensor:
    """Return a router's values: one row per expert, zero for an expert without prompts."""
    values = torch.zeros(router.info.shape, dtype=router.info.dtype)
    for row, expert in enumerate(router.experts):
        if expert in gates:
            values[row] = gates[expert][router.position]
    return values
