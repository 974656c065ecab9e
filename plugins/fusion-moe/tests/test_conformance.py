"""Run the conformance suite on mixtures of tiny models with the names of a Llama."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from torch import nn

from fusion_moe import plugin
from fusion_testing import MODELS, AlgorithmSuite, tiny_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fusion_core import AlgorithmSpec

_HIDDEN, _INNER = 6, 10
SPECS = {spec.name: spec for spec in plugin.fusion_register_algorithms()}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(_HIDDEN)
        self.post_attention_layernorm = nn.RMSNorm(_HIDDEN)
        self.self_attn = nn.ModuleDict(
            {f"{part}_proj": nn.Linear(_HIDDEN, _HIDDEN, bias=False) for part in "qkvo"}
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(_HIDDEN, _INNER, bias=False),
                "up_proj": nn.Linear(_HIDDEN, _INNER, bias=False),
                "down_proj": nn.Linear(_INNER, _HIDDEN, bias=False),
            }
        )


class Dense(nn.Module):
    """The tensors of a Llama, which never computes anything here."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(7, _HIDDEN)
        self.model.layers = nn.ModuleList(Layer() for _ in range(2))
        self.model.norm = nn.RMSNorm(_HIDDEN)
        self.lm_head = nn.Linear(_HIDDEN, 7, bias=False)
        self.config = SimpleNamespace(to_dict=lambda: {"model_type": "llama"})


_NAMES = "the check's tensor has a name that no Llama has; test_refusals.py makes the check"


class TestMoe(AlgorithmSuite):
    expected_failures: ClassVar[Mapping[str, str]] = {
        "test_models_that_do_not_fit_are_refused_by_name": _NAMES,
        "test_nan_in_an_expert_is_refused_by_name": _NAMES,
        "test_nan_in_the_base_is_refused_by_name": _NAMES,
        "test_degenerate_task_vectors_stay_bounded": "a mixture refuses the tensors that it adds",
    }

    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["moe"]

    @pytest.fixture(params=["separate", "packed"])
    def options(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return {"gate": "random", "layout": request.param}

    @pytest.fixture
    def make_pool(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        for kind in MODELS:
            monkeypatch.setitem(MODELS, kind, Dense)
        return tiny_pool


class TestSmile(AlgorithmSuite):
    expected_failures: ClassVar[Mapping[str, str]] = {
        "test_degenerate_task_vectors_stay_bounded": "live models lack the tensors that it adds",
    }

    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["smile"]

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"rank": 2}


class TestWemoe(AlgorithmSuite):
    @pytest.fixture
    def spec(self) -> AlgorithmSpec:
        return SPECS["wemoe"]

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"rank": 2, "steps": 3, "batch_size": 4}
