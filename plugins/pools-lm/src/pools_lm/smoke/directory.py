"""Load the model in a directory, and the models that it was merged from."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fusion_core import load_models
from fusion_core.commands import load_plugins, load_recipe, read_added_modules
from fusion_core.errors import CheckpointError, FusionError
from fusion_core.weights import read_config
from pools_lm.config import LanguageConfig
from pools_lm.language_pool import LanguagePool
from pools_lm.pools import CausalPool, Seq2SeqPool, VisionLanguagePool
from pools_lm.smoke.interview import NamedModel

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core import ModelPool

_LOG = logging.getLogger(__name__)
_POOLS: dict[str, type[LanguagePool]] = {
    "causal-lm": CausalPool,
    "seq2seq-lm": Seq2SeqPool,
    "vision-language": VisionLanguagePool,
}
_RECIPE = "recipe.yaml"


def load_model(directory: Path) -> NamedModel:
    """Return the model in a directory, as transformers would load it.

    Raises `CheckpointError` for a directory without a full model.
    """
    if not directory.is_dir():
        raise CheckpointError(
            f"expected a directory: {directory}", hint="Name a model's directory."
        )
    if (directory / "adapter_config.json").is_file():
        raise CheckpointError(
            f"expected a full model, found a LoRA adapter: {directory}",
            hint="Merge it into its base first, with fuse run or PEFT's merge_and_unload.",
        )
    path = directory.resolve()
    pool = _POOLS[_pool_name(path)](LanguageConfig(base=str(path), models={}))
    pool.check_builds()
    return NamedModel(path.name, pool, pool.reference, read_added_modules(path, load_plugins()))


def source_models(
    directory: Path, blocked: frozenset[str], trust: frozenset[str]
) -> list[NamedModel]:
    """Return the base and experts in a directory's recipe; none without a recipe.

    A warning explains why models cannot be read. `blocked` names plugins that must not be loaded.
    `trust` names what the recipe may do that can run code.
    """
    path = directory / _RECIPE
    if not path.is_file():
        return []
    try:
        recipe = load_recipe(path)
        pool = recipe.get("model_pool")
        if isinstance(pool, dict) and pool.get("name") == "checkpoints":
            # this pool cannot build models, so use the pool for the merged model
            recipe = {**recipe, "model_pool": {**pool, "name": _pool_name(directory)}}
        return models_of_pool(load_models(recipe, load_plugins(blocked), trust=trust), directory)
    except FusionError as error:
        _LOG.warning("the base and experts are not asked: %s", error.message)
        return []


def models_of_pool(pool: ModelPool[Any], directory: Path) -> list[NamedModel]:
    """Return a pool's models. One with the name of the merge's directory gets a suffix."""
    if not isinstance(pool, LanguagePool):
        return []
    merge_name = directory.resolve().name
    return [
        NamedModel(f"{name} (merged)" if name == merge_name else name, pool, weights)
        for name, weights in pool.by_name.items()
    ]


def _pool_name(directory: Path) -> str:
    """Return the name of the pool that can build the model in a directory."""
    config = read_config(directory / "config.json")
    if "vision_config" in config:
        return "vision-language"
    return "seq2seq-lm" if config.get("is_encoder_decoder") else "causal-lm"
