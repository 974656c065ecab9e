"""Warnings about merges that are nearly their base, or nearly one expert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core import Algorithm, ComponentConfig, run_fusion
from fusion_core.commands import read_provenance
from fusion_core.weights import Linear, StateDictSource, describe_nearness

if TYPE_CHECKING:
    from pathlib import Path


def sources(**experts: torch.Tensor) -> dict[str, StateDictSource]:
    return {name: source(values) for name, values in experts.items()}


def source(values: torch.Tensor) -> StateDictSource:
    halves = {"a.weight": values[:9000].reshape(90, 100), "b.bias": values[9000:]}
    return StateDictSource(halves | {"steps": torch.tensor(3)}, label="model")


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(4, 9100, generator=torch.Generator().manual_seed(0))


def test_a_merge_near_its_base_is_reported_at_any_scale(vectors: torch.Tensor) -> None:
    base, first, second, _ = vectors
    for scale in (1.0, 1e-4):
        experts = sources(x=base + scale * first, y=base + scale * second)
        near = source(base + 0.03 * scale * first)
        (warning,) = describe_nearness(near, source(base), experts)
        assert warning.startswith("the merge is nearly the base")
        assert describe_nearness(source(base + 0.1 * scale * first), source(base), experts) == []


def test_tensors_of_different_dtypes_are_compared_together(vectors: torch.Tensor) -> None:
    """A model may hold 8-bit floats, which torch joins with no other dtype."""

    def narrow(values: torch.Tensor) -> StateDictSource:
        bias = values[9000:].to(torch.float8_e4m3fn)
        return StateDictSource(
            {"a.weight": values[:9000].bfloat16(), "b.bias": bias}, label="model"
        )

    base, first, second, _ = vectors
    experts = {"x": narrow(base + first), "y": narrow(base + second)}
    (warning,) = describe_nearness(narrow(base + first), narrow(base), experts)
    assert warning.startswith("the merge is nearly the expert 'x'")


def test_a_merge_near_one_expert_is_reported_with_and_without_a_base(vectors: torch.Tensor) -> None:
    base, first, second, _ = vectors
    experts = sources(x=base + first, y=base + second)
    near = source(base + first + 0.03 * second)
    for reference in (source(base), None):
        (warning,) = describe_nearness(near, reference, experts)
        assert "nearly the expert 'x'" in warning
    assert describe_nearness(source(base + (first + second) / 2), source(base), experts) == []


def test_a_merge_with_tensors_of_its_own_is_not_reported(vectors: torch.Tensor) -> None:
    """A mixture shares only its attention with the base, and that is the base's."""
    base, first, second, _ = vectors
    experts = sources(x=base + first, y=base + second)
    mixture = {**source(base).state_dict(), "experts.0.weight": first}
    assert describe_nearness(StateDictSource(mixture), source(base), experts) == []


def test_copies_of_one_model_are_not_reported(vectors: torch.Tensor) -> None:
    base, first, _, _ = vectors
    experts = sources(x=base + first, y=base + first)
    assert describe_nearness(source(base + first), source(base), experts) == []
    assert describe_nearness(source(first), None, sources(x=first)) == []


def test_experts_that_are_differences_are_added_to_the_base(vectors: torch.Tensor) -> None:
    base, first, second, _ = vectors
    experts = sources(x=first, y=second)
    for expert in experts.values():
        expert.is_delta = True
    (warning,) = describe_nearness(source(base + first), source(base), experts)
    assert "nearly the expert 'x'" in warning


class Fraction(Algorithm[ComponentConfig]):
    config_class = ComponentConfig

    def run(self, pool: Any, context: Any) -> Any:
        return context.merge(pool, Linear((0.001, 0.001)))


def test_a_run_warns_and_records_it(
    tmp_path: Path, vectors: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    base, first, second, _ = ({"w": row} for row in vectors)
    pool = {"base": base, "models": {"x": first, "y": second}}
    run_fusion(algorithm=Fraction(), model_pool=pool, output=tmp_path / "merged")
    recorded = read_provenance(tmp_path / "merged").warnings
    assert [warning for warning in recorded if "nearly the base" in warning]
    assert "nearly the base" in caplog.text
