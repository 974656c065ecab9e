"""Which models are asked: the one in a directory, and those that it was made of."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fusion_core import models_of
from fusion_core.commands import load_plugins, load_recipe
from fusion_core.errors import CheckpointError, FusionError
from fusion_core.weights import read_config
from pools_lm.config import LanguageConfig
from pools_lm.pools import CausalPool, LanguagePool, Seq2SeqPool
from pools_lm.smoke.asking import Speaker

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core import ModelPool

_LOG = logging.getLogger(__name__)
_POOLS = {"causal-lm": CausalPool, "seq2seq-lm": Seq2SeqPool}
_RECIPE = "recipe.yaml"


def model_in(directory: Path) -> Speaker:
    """Return the model in a directory, as transformers would load it.

    Raises `CheckpointError` for a directory that holds none.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory", hint="Name a model's directory.")
    if (directory / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{directory} holds a LoRA adapter, not a model",
            hint="Merge it with its base first, by fuse run or PEFT's merge_and_unload.",
        )
    path = directory.resolve()
    pool = _POOLS[_kind(path)](LanguageConfig(base=str(path), models={}))
    pool.check_builds()
    return Speaker(path.name, pool, pool.reference)


def made_of(directory: Path, blocked: frozenset[str], trust: frozenset[str]) -> list[Speaker]:
    """Return the base and experts that the recipe in a directory names; none without a recipe.

    Where they cannot be read a warning says why. `blocked` are plugins that are not to be loaded;
    `trust` is what the recipe may do that can run code.
    """
    if not (directory / _RECIPE).is_file():
        return []
    try:
        return speakers(_models_of(directory, blocked, trust), directory)
    except FusionError as error:
        _LOG.warning("base and experts are not asked: %s", error.message)
        return []


def speakers(pool: ModelPool[Any], directory: Path) -> list[Speaker]:
    """Return the models that the one in a directory was made of.

    One that has the directory's name is told apart.
    """
    if not isinstance(pool, LanguagePool):
        return []
    own = directory.resolve().name
    named = (
        (f"{name} (merged)" if name == own else name, each) for name, each in pool.by_name.items()
    )
    return [Speaker(name, pool, each) for name, each in named]


def _models_of(directory: Path, blocked: frozenset[str], trust: frozenset[str]) -> ModelPool[Any]:
    """Return a recipe's models; those that any pool merges as what the directory holds."""
    recipe = load_recipe(directory / _RECIPE)
    pool = recipe.get("model_pool")
    if isinstance(pool, dict) and pool.get("name") == "checkpoints":
        recipe = {**recipe, "model_pool": {**pool, "name": _kind(directory)}}
    return models_of(recipe, load_plugins(blocked), trust=trust)


def _kind(directory: Path) -> str:
    """Return the pool of models like the one in a directory."""
    config = read_config(directory / "config.json")
    return "seq2seq-lm" if config.get("is_encoder_decoder") else "causal-lm"
