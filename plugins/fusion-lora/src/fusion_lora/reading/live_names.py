"""Names in a live model of transformers of the tensors in a base's files.

PEFT names the modules of a live model. transformers renames tensors when it loads files: `layers`
of a ViT were `encoder.layer`, and `save_pretrained` still writes that. The installed transformers
is asked for its renaming, so a model that a later version renames needs no change here.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.weights import drop_dangerous_fields, match_names, read_config
from fusion_lora.reading.experts import name_in_live_model

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from transformers.core_model_loading import WeightRenaming

    from fusion_core import WeightSource

    #: the names of a model's tensors, and what renames those of its files
    _LiveModel = tuple[frozenset[str], tuple[WeightRenaming, ...]]

_CONFIG = "config.json"


def find_live_names(base: WeightSource) -> dict[str, str]:
    """Return the live model's name of each of a base's tensors, by the base's.

    Without `config.json`, or for a class that transformers does not have, these are the base's
    names, and Mixtral's experts are those that transformers builds.
    """
    live = _find_live_model(base)
    if live is None:
        return {name: name_in_live_model(name) for name in base.infos}
    tensors, renamings = live
    today: dict[str, str] = {}
    for stored in base.infos:
        name = stored
        for renaming in () if stored in tensors else renamings:
            name, _ = renaming.rename_source_key(name)
        today[name] = stored
    matched = {name: live_name for live_name, name in match_names(tensors, today).items()}
    return {stored: matched.get(name, name) for name, stored in today.items()}


def find_converted(base: WeightSource, names: Collection[str]) -> list[str]:
    """Return those of a base's tensors that a live model divides or joins.

    `names` are tensors of modules, or parameters of packed experts.
    """
    live = _find_live_model(base)
    if live is None:
        return []
    tensors, _ = live
    live_names = find_live_names(base)
    return [name for name in names if live_names.get(name, name) not in tensors]


def _find_live_model(base: WeightSource) -> _LiveModel | None:
    config = _read_config_of(base)
    return None if config is None else _build(json.dumps(config))


def _read_config_of(base: WeightSource) -> Mapping[str, Any] | None:
    """Return the configuration next to the files of a base that is on this machine."""
    stamps = () if base.origin is None else base.origin.stamps
    paths = {path.with_name(_CONFIG) for path in stamps}
    path = next((path for path in sorted(paths) if path.is_file()), None)
    return None if path is None else dict(drop_dangerous_fields(read_config(path)))


@lru_cache(maxsize=4)
def _build(config: str) -> _LiveModel | None:
    """Return the tensors of a model that is built without values, and what renames them."""
    import transformers
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    fields = json.loads(config)
    classes, model_type = fields.get("architectures"), fields.pop("model_type", None)
    named = isinstance(classes, list) and classes and isinstance(classes[0], str)
    model_class = getattr(transformers, classes[0], None) if named else None
    base_class = transformers.PreTrainedModel
    if not isinstance(model_class, type) or not issubclass(model_class, base_class):
        return None
    with suppress(Exception), torch.device("meta"):  # classes of configurations raise anything
        model = model_class(transformers.AutoConfig.for_model(model_type, **fields))
        conversions = get_model_conversion_mapping(model)
        renamings = (one for one in conversions if isinstance(one, WeightRenaming))
        return frozenset(model.state_dict()), tuple(renamings)
    return None
