"""Options, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fusion_core.errors import RecipeError
from pools_clip.config import ClipClassificationConfig, ClipConfig

DATASET = {"classnames": ["cat"], "test": "test.parquet"}


def classification(**options: Any) -> ClipClassificationConfig:
    given: dict[str, Any] = {"clip": "base", "datasets": {"pets": DATASET}, **options}
    return ClipClassificationConfig(**given)


def test_a_list_of_models_is_named_after_their_paths() -> None:
    models: Any = ["runs/pets", Path("cars")]
    config = ClipConfig(base="b", models=models)
    assert config.models == {"pets": "runs/pets", "cars": "cars"}


def test_two_models_of_one_name_are_refused() -> None:
    models: Any = ["x/pets", "y/pets"]
    with pytest.raises(RecipeError, match="same name"):
        ClipConfig(base="b", models=models)


def test_an_option_that_is_not_there_is_refused_with_a_guess() -> None:
    with pytest.raises(RecipeError, match="did you mean batch_size"):
        classification(batchsize=3)


@pytest.mark.parametrize("template", ["a photo", "a {name}", "{} {} {1}", "a {"])
def test_a_template_has_one_kind_of_place(template: str) -> None:
    with pytest.raises(RecipeError, match="the place of the class name"):
        classification(templates=[template])


@pytest.mark.parametrize(
    "options",
    [{"tasks": []}, {"templates": []}, {"limit": 0}, {"batch_size": 0}, {"corruption": "fog"}],
)
def test_nothing_to_work_on_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        classification(**options)
