"""Refusal of an adapter's weights that are named as if they were a model's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from fusion_core import WeightSource
    from fusion_core.weights import Location

#: Names of the factors in the files of PEFT, kohya, diffusers and LyCORIS.
_FACTOR = re.compile(
    r"(?:^|[._])(?:lora_(?:[AB]|up|down|embedding_[AB])|hada_[wt][12](?:_[ab])?|lokr_[wt][12]\w*)"
    r"(?:\.|$)"
)
_CONFIG = "adapter_config.json"


def refuse_factors(source: WeightSource, location: Location) -> None:
    """Raise `CheckpointError` if all matrices of a file are factors of an adapter.

    The merge of factors is not the factors of a merge: a product of sums is no sum of products.
    """
    matrices = [name for name, info in source.infos.items() if len(info.shape) > 1]
    if not matrices or not all(map(_FACTOR.search, matrices)):
        return
    has_config = (location.directory / _CONFIG).is_file()
    raise CheckpointError(
        f"{location.name} holds an adapter's factors, such as {matrices[0]}, and no weights",
        hint=f"Name its directory: {location.directory}"
        if has_config
        else "Merge it into its base first, with the program that made it, and name the result. Of "
        f"PEFT's adapters, name the directory with {_CONFIG}.",
    )
