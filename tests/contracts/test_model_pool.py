from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import fusion_core
from fusion_core import AlignmentPolicy, ComponentConfig, ModelPool
from fusion_core.errors import AlignmentError, BrokenPluginError, RecipeError
from fusion_core.weights import Difference, StateDictSource
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Seasons(CheckpointsPool):
    def task_of(self, expert: str) -> str:
        return expert.partition("-")[0]


def test_a_task_has_the_first_expert_that_was_fine_tuned_for_it() -> None:
    models = {name: nn.Linear(1, 1) for name in ("winter-1", "summer-1", "summer-2")}
    pool = Seasons(CheckpointsConfig(models=models))
    assert pool.expert_of("summer") is pool.experts["summer-1"]
    with pytest.raises(RecipeError, match="'spring'") as error:
        pool.expert_of("spring")
    assert error.value.hint == "The experts' tasks: winter, summer."


class Plain(ModelPool[ComponentConfig]):
    """Two state dicts, with files that describe them."""

    def __init__(self, **files: bytes) -> None:
        super().__init__(ComponentConfig())
        self.base = StateDictSource({"w": torch.zeros(2)})
        self.experts = {"a": StateDictSource({"w": torch.ones(2)})}
        self.files = files

    def build(self, weights: Any, **_: Any) -> nn.Module:
        raise NotImplementedError

    def side_files(self) -> Mapping[str, Mapping[str, bytes]]:
        return {"base": {}, "a": self.files}


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("base", nn.Linear(2, 2), "Plain has a Linear as the model 'base'"),
        ("experts", {"a": {"w": torch.ones(2)}}, "Plain has a dict as the model 'a'"),
        ("experts", ["a"], "Plain has a list as its experts, not a mapping"),
    ],
)
def test_models_that_are_no_weights_are_a_fault_of_the_pool(
    attribute: str, value: object, message: str
) -> None:
    pool = Plain()
    setattr(pool, attribute, value)
    with pytest.raises(BrokenPluginError, match=message):
        fusion_core.merge("simple-average", pool)


class Compared(Plain):
    asked: tuple[str, ...] = ()

    def differences(self, topic: str) -> Iterator[Difference]:
        self.asked = (*self.asked, topic)
        yield Difference(f"{topic}.serious", "a", "is another")
        yield Difference(f"{topic}.slight", "a", "is another", is_serious=False)


def test_a_pool_that_compares_no_side_files_is_refused() -> None:
    with pytest.raises(BrokenPluginError, match="Plain has side files and does not compare") as e:
        Plain(**{"config.json": b"{}"}).aligned(AlignmentPolicy())
    assert "pools_checkpoints.DescribedPool" in (e.value.hint or "")
    assert Plain().aligned(AlignmentPolicy()).warnings == ()


def test_policies_judge_the_differences_that_a_pool_finds() -> None:
    with pytest.raises(AlignmentError, match=r"2 differences\n  config.serious .*\n  tok") as error:
        Compared().aligned(AlignmentPolicy())
    assert "alignment.config=warn, alignment.tokenizer=warn" in (error.value.hint or "")
    pool = Compared()
    aligned = pool.aligned(AlignmentPolicy(config="ignore", tokenizer="warn"))
    assert pool.asked == ("tokenizer",)
    assert aligned.warnings == (
        "a: tokenizer.serious: is another",
        "a: tokenizer.slight: is another",
    )
