"""Which tensors of a training checkpoint are the model's, and what they are called.

A checkpoint holds the model, the state of the optimizer and more. Trainers save
`{"model": ..., "optim": ...}` or one flat dict, and torch flattens it: `model.layers.0.weight`. The
metadata remembers the keys of each level, so prefixes are removed exactly.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from formats_dcp.metadata import Entry

#: First keys, or beginnings of flat names, that belong to the trainer.
_TRAINER = re.compile(
    r"(chained_\d+\.)?(optim(izer|izers)?(_states?|_\d+)?|lr_schedulers?|schedulers?|rng_state|"
    r"train_state|dataloader|loaders|callbacks|loops|param_groups|scaler)(\.|$)"
)
#: Ends of names under `state`, in optimizers whose state is not nested.
_MOMENT = re.compile(r"state\..*\.(exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer|step)")
#: Keys under which trainers put the model, most specific first.
_MODEL = ("model", "state_dict", "module", "app")


def select_model(entries: Iterable[Entry], label: str) -> tuple[dict[str, Entry], list[str]]:
    """Return the model's tensors by name, and for each other tensor the part that it belongs to.

    Raises `CheckpointError` if the checkpoint holds no model, several models, or a name twice.
    """
    groups: dict[tuple[str, ...], dict[str, Entry]] = {}
    others = []
    for entry in entries:
        if _TRAINER.match(".".join(entry.path)) or _is_trainers(entry):
            others.append(_part_of(entry))
            continue
        name = entry.path[-1]
        tensors = groups.setdefault(entry.path[:-1], {})
        if name in tensors:
            raise CheckpointError(f"{label}: tensor {name!r} is listed twice")
        tensors[name] = entry
    chosen = _choose(groups, label)
    for group, tensors in groups.items():
        if group != chosen:
            others += [_part_of(entry) for entry in tensors.values()]
    return groups[chosen], others


def count_parts(tensors: Iterable[str], objects: Iterable[str]) -> str:
    """Return the parts that were left out with their counts: `optim (24), step (1)`.

    `tensors` are parts, `objects` the names of objects that are not tensors.
    """
    counts = Counter([*tensors, *(re.split(r"[./]", name)[0] for name in objects)])
    return ", ".join(f"{part} ({count})" for part, count in counts.items())


def _part_of(entry: Entry) -> str:
    """Return the keys down to the one that tells the trainer's tensors from the model's."""
    for depth, level in enumerate(entry.path[:-1], 1):
        if _TRAINER.fullmatch(level):
            return ".".join(entry.path[:depth])
    return ".".join(entry.path[:-1]) or re.split(r"[./]", entry.name)[0]


def _is_trainers(entry: Entry) -> bool:
    levels = entry.path[:-1]
    return _MOMENT.fullmatch(entry.name) is not None or any(
        _TRAINER.fullmatch(level) for level in levels
    )


def _choose(groups: Mapping[tuple[str, ...], object], label: str) -> tuple[str, ...]:
    """Return the keys of the model in the nested state dict."""
    if not groups:
        raise CheckpointError(
            f"{label} holds no model",
            hint="Name the directory of the model: some trainers save the optimizer elsewhere.",
        )
    if len(groups) == 1:
        return next(iter(groups))
    for key in _MODEL:
        named = [group for group in groups if group and group[-1] == key]
        if len(named) == 1:
            return named[0]
    listed = ", ".join(sorted(".".join(group) or "(top level)" for group in groups)[:8])
    raise CheckpointError(
        f"{label} holds several models: {listed}",
        hint="Save the one to merge under the key `model`: dcp.save({'model': state_dict}, ...).",
    )
