"""The models of a merge: names in the pool, adapters, other documents, and stacked layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from recipes_mergekit.configuration import Reference, Source

#: Keys of `config.json` that hold the number of layers.
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
#: mergekit compares neither configurations nor tokenizers.
UNCHECKED = {"config": "warn", "tokenizer": "warn", "matrices": "stored"}
#: A layer may move anywhere, so nothing is near the model that was there.
STACKED = {**UNCHECKED, "outliers": "allow"}


@dataclass
class Models:
    """Names models, and says where a recipe finds them."""

    #: recipes of the file's other documents, by name
    documents: Mapping[str, Mapping[str, Any]]
    names: dict[Reference, str] = field(default_factory=dict)
    #: models that are merged in fp32 before the merge
    unrounded: list[Reference] = field(default_factory=list)

    def name(self, model: Reference) -> str:
        """Return the name of a model in the pool, made from its path."""
        if model not in self.names:
            path = model.path if model.adapter is None else model.adapter
            stem = Path(path.partition("@")[0]).name or "model"
            taken = {"base", "union", *self.names.values()}
            numbered = (f"{stem}-{number}" for number in range(2, len(taken) + 3))
            self.names[model] = next(name for name in (stem, *numbered) if name not in taken)
        return self.names[model]

    def locate(self, model: Reference, base: Reference | None = None) -> Any:  # noqa: ANN401 - a path or a recipe
        """Return a model as a pool takes it: a path, or a recipe.

        An adapter of the pool's base is a path. An adapter of another model is added to it first.
        """
        owner = self.documents.get(model.path, model.path)
        if model.adapter is None:
            if isinstance(owner, dict) and "output" not in owner:
                self.unrounded.append(model)
            return owner
        if base is not None and base.adapter is None and model.path == base.path:
            return model.adapter
        self.unrounded.append(model)
        return {
            "algorithm": {"name": "task-arithmetic", "scale": 1.0},
            "model_pool": {"base": owner, "models": {self.name(model): model.adapter}},
            "alignment": UNCHECKED,
        }

    def stack(self, sources: Sequence[Source], base: Reference | None = None) -> Any:  # noqa: ANN401 - a path or a recipe
        """Return the model that has the layers of one source of every slice.

        If they are all layers of one model, that is the model itself. The configuration and the
        tokenizer of the result are those of `base`.
        """
        used = dict.fromkeys(source.model for source in sources)
        first = sources[0].model
        ranges = [source.layers or (0, 0) for source in sources]
        if len(used) == 1 and base in {None, first}:
            base = None
            if self._is_whole(first, ranges):
                return self.locate(first)
        names = {model: "base" if model == base else self.name(model) for model in used}
        experts = {name: self.locate(model) for model, name in names.items() if model != base}
        return {
            "algorithm": {
                "name": "stack",
                "slices": [
                    {"model": names[source.model], "layers": [*layers]}
                    for source, layers in zip(sources, ranges, strict=True)
                ],
            },
            "model_pool": {**({"base": self.locate(base)} if base else {}), "models": experts},
            "alignment": STACKED,
        }

    def _is_whole(self, model: Reference, ranges: Sequence[tuple[int, int]]) -> bool:
        starts, stops = zip(*ranges, strict=True)
        is_contiguous = starts == (0, *stops[:-1])
        return is_contiguous and _count_layers(model.path) == stops[-1]


def _count_layers(path: str) -> int | None:
    """Return the number of layers in a model's configuration; None if it cannot be read."""
    from fusion_core import find_model
    from fusion_core.errors import FusionError
    from fusion_core.weights import read_config

    try:
        config = read_config(find_model(path, "model").location.directory / "config.json")
    except (FusionError, OSError, ValueError):  # the run names the model's problem
        return None
    text = config.get("text_config")
    for options in (config, text if isinstance(text, dict) else {}):
        for key in _LAYER_COUNTS:
            if isinstance(options.get(key), int):
                return int(options[key])
    return None
