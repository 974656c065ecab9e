"""Valid and invalid options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fusion_core.errors import RecipeError
from pools_clip.config import ClipClassificationConfig, ClipConfig

DATASET = {"classnames": ["cat"], "test": "test.parquet"}


def classification(**options: Any) -> ClipClassificationConfig:
    fields: dict[str, Any] = {"clip": "base", "datasets": {"pets": DATASET}, **options}
    return ClipClassificationConfig(**fields)


def test_a_list_of_models_is_named_after_their_paths() -> None:
    models: Any = ["runs/pets", Path("cars")]
    config = ClipConfig(base="b", models=models)
    assert config.models == {"pets": "runs/pets", "cars": "cars"}


def test_two_models_of_one_name_are_refused() -> None:
    models: Any = ["x/pets", "y/pets"]
    with pytest.raises(RecipeError, match="same name"):
        ClipConfig(base="b", models=models)


def test_an_unknown_option_is_refused_with_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="did you mean batch_size"):
        classification(batchsize=3)


@pytest.mark.parametrize("template", ["a photo", "a {name}", "{} {} {1}", "a {"])
def test_templates_need_empty_braces(template: str) -> None:
    with pytest.raises(RecipeError, match="for the class name"):
        classification(templates=[template])


@pytest.mark.parametrize(
    "options",
    [{"tasks": []}, {"templates": []}, {"limit": 0}, {"batch_size": 0}, {"corruption": "fog"}],
)
def test_empty_and_unknown_values_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        classification(**options)
