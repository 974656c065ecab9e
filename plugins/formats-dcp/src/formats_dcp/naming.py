"""Which tensors of a training checkpoint are the model's, and what they are called.

A checkpoint holds the model, the state of the optimizer and more. Trainers save
`{"model": ..., "optim": ...}` or one flat dict, and torch flattens it: `model.layers.0.weight`. The
metadata remembers the keys of each level, so prefixes are removed exactly.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import takewhile
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from formats_dcp.metadata import Entry

#: Keys, or beginnings of flat names, that a trainer uses. A model may have such modules too.
_TRAINER = re.compile(
    r"(chained_\d+\.)?(optim(izer|izers)?(_states?|_\d+)?|lr_schedulers?|schedulers?|rng_state|"
    r"train_state|dataloader|loaders|callbacks|loops|param_groups|scaler)(?=[./]|$)"
)
#: Ends of names under `state`, in optimizers whose state is not nested.
_MOMENT = re.compile(r"state\..*\.(exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer|step)")
#: Parts of names that only an optimizer uses.
_OPTIMIZER = re.compile(
    r"(^|\.)(optim\w*\.state|param_groups|exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer)(\.|$)"
)
#: Parts whose tensors are not floating-point if they are the trainer's.
_STATES = frozenset(("rng_state", "train_state"))
#: The end of names of objects that a model saves.
_EXTRA_STATE = "_extra_state"
#: Keys under which trainers put the model's state dict, most specific first.
_MODEL = ("model", "state_dict", "module")
#: The same, and a key that holds the optimizer too.
_KEYS = (*_MODEL, "app")
#: Modules that torch wraps around others when it compiles, shards or recomputes them.
_WRAPPER = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.(?=.)"
)
#: The prefix of all names in a model under `DistributedDataParallel`.
_DISTRIBUTED = "module."


def select_model(
    entries: Sequence[Entry], objects: Iterable[str], label: str
) -> tuple[dict[str, Entry], list[str]]:
    """Return the model's tensors by name, and for each other tensor the part that it belongs to.

    `objects` are the names of objects that are not tensors. Raises `CheckpointError` if the
    checkpoint holds no model, several models, or a name twice.
    """
    evident = _find_evidence(entries, objects)
    members: list[Entry] = []
    others: list[Entry] = []
    for entry in entries:
        part, is_certain = _trainers_part(entry.path)
        is_trainers = part is not None and (is_certain or part in evident)
        (others if is_trainers else members).append(entry)
    model = _choose({entry.path[:-1] for entry in members}, label)
    tensors: dict[str, Entry] = {}
    for entry in members:
        if entry.path[: len(model)] != model or len(entry.path) == len(model):
            others.append(entry)
            continue
        name = ".".join(entry.path[len(model) :])
        if name in tensors:
            raise CheckpointError(f"{label}: tensor {name!r} is listed twice")
        tensors[name] = entry
    return _unwrap(tensors, label), [_part_of(entry) for entry in others]


def count_parts(tensors: Iterable[str], objects: Iterable[str]) -> str:
    """Return the parts that were left out with their counts: `optim (24), step (1)`.

    `tensors` are parts, `objects` the names of objects that are not tensors.
    """
    counts = Counter([*tensors, *(re.split(r"[./]", name)[0] for name in objects)])
    return ", ".join(f"{part} ({count})" for part, count in counts.items())


def _unwrap(tensors: dict[str, Entry], label: str) -> dict[str, Entry]:
    """Remove from names the modules that torch wraps around a model, as transformers does."""
    names = {name: _WRAPPER.sub("", name) for name in tensors}
    if all(name.startswith(_DISTRIBUTED) for name in names.values()):
        names = {name: short.removeprefix(_DISTRIBUTED) for name, short in names.items()}
    if len({*names.values()}) < len(names):
        raise CheckpointError(
            f"{label}: names are equal without the wrappers of torch",
            hint="Save one model: torch.distributed.checkpoint.state_dict.get_model_state_dict.",
        )
    return {names[name]: entry for name, entry in tensors.items()}


def _part_of(entry: Entry) -> str:
    """Return the keys down to the one that tells the trainer's tensors from the model's."""
    for depth, level in enumerate(entry.path[:-1], 1):
        if _TRAINER.fullmatch(level):
            return ".".join(entry.path[:depth])
    return ".".join(entry.path[:-1]) or re.split(r"[./]", entry.name)[0]


def _trainers_part(path: Sequence[str]) -> tuple[str | None, bool]:
    """Return the part of the trainer that a path names, and whether the model cannot have it.

    A flat name, or a key below the model's, may also name a module of the model.
    """
    for depth, level in enumerate(path[:-1], 1):
        if _TRAINER.fullmatch(level):
            return ".".join(path[:depth]), not set(_MODEL).intersection(path[: depth - 1])
    name = ".".join(path)
    if _MOMENT.fullmatch(name):
        return "state", False
    match = _TRAINER.match(name)
    return (match[0] if match else None), False


def _find_evidence(entries: Iterable[Entry], objects: Iterable[str]) -> set[str]:
    """Return the parts that are the trainer's beyond doubt.

    They have names that only an optimizer uses, or objects that are not tensors. States of random
    generators and counters have no floating-point tensor.
    """
    evident: set[str | None] = set()
    states: set[str | None] = set(_STATES)
    for name in objects:
        if not name.rpartition("/")[0].endswith(_EXTRA_STATE) and not name.endswith(_EXTRA_STATE):
            evident.add(_trainers_part(re.split(r"[./]", name))[0])
    for entry in entries:
        part, _ = _trainers_part(entry.path)
        if entry.dtype.is_floating_point:
            states.discard(part)
        if _OPTIMIZER.search(entry.name):
            evident.add(part)
    return {part for part in evident | states if part is not None}


def _choose(groups: set[tuple[str, ...]], label: str) -> tuple[str, ...]:
    """Return the keys of the model in the nested state dict; parts of it may lie deeper."""
    if not groups:
        raise CheckpointError(
            f"{label} holds no model",
            hint="Name the directory of the model: some trainers save the optimizer elsewhere.",
        )
    if len(groups) == 1:
        return _cut_behind_keys(*groups)
    for key in _KEYS:
        roots = {group[: group.index(key) + 1] for group in groups if key in group}
        if len(roots) == 1:
            (root,) = roots  # shorten it to the outermost key of a model
            depths = (depth for depth, level in enumerate(root, 1) if level in _MODEL)
            root = root[: next(depths, None)]
            family = [group for group in groups if group[: len(root)] == root]
            if len(family) == 1:
                return _cut_behind_keys(family[0])
            deeper = {level for group in family for level in group[len(root) :]}
            if key in _MODEL and deeper.isdisjoint(_MODEL):
                return root
            break
    listed = ", ".join(sorted(".".join(group) or "(top level)" for group in groups)[:8])
    raise CheckpointError(
        f"{label} holds several models: {listed}",
        hint="Save the one to merge under the key `model`: dcp.save({'model': state_dict}, ...).",
    )


def _cut_behind_keys(group: tuple[str, ...]) -> tuple[str, ...]:
    """Cut a path behind the first keys of a model that follow each other; keep one without any.

    What lies below these keys are modules: `model.head` of `{"model": {"head": {"weight": ...}}}`.
    """
    above = [*takewhile(lambda level: level not in _KEYS, group)]
    keys = [*takewhile(lambda level: level in _KEYS, group[len(above) :])]
    return (*above, *keys)
