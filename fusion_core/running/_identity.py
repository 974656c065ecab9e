"""What a measured number depends on: weights, how a model is built of them, the task, the code.

Whatever is not known to be the same is None, and then nothing is remembered.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.weights import AlignedSource, CastSource, RenamedSource
from fusion_core.weights.aligning.vocabulary import MeanSource, PaddedSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.weights import WeightSource

Key = dict[str, Any]

#: Sources that are known by what they read from, and by what is seen of their tensors.
_SEEN_THROUGH = (AlignedSource, CastSource, MeanSource, PaddedSource, RenamedSource)


def identify_model(pool: ModelPool[Any], source: WeightSource) -> Key | None:
    """Identify a live model that a pool builds of weights."""
    read = [source, pool.base] if source.is_delta and pool.base is not None else [source]
    weights = [identify_weights(each) for each in read]
    if None in weights:  # those in memory: the options of their pool cannot be told, either
        return None
    options = pool.identity()
    if options is None:
        return None
    assets = {name: _digest(file) for name, file in sorted(pool.assets().items())}
    return {"weights": weights, "assets": assets, "options": options}


def identify_weights(source: WeightSource) -> Key | None:
    """Identify weights by the files that they are read from, and how; None for those in memory."""
    within = [identify_weights(each) for each in source.sources]
    files = dict(source.files())
    if None in within or not (files or (within and type(source) in _SEEN_THROUGH)):
        return None
    infos = [[info.name, info.shape, str(info.dtype)] for info in source.infos.values()]
    names = dict(source.names) if isinstance(source, RenamedSource) else {}
    return {
        "kind": type(source).__qualname__,
        "source": source.describe(),
        "files": files,
        "changed_ns": list(source.change_times()),
        "seen": _digest(json.dumps([infos, names]).encode()),
        "of": within,
    }


def identify_task(tasks: TaskPool[Any], name: str) -> Key | None:
    """Identify a task, what it measures on, and what its models are built in."""
    own = tasks.identity(name)
    return None if own is None else {"task": name, "data": own, "dtype": str(tasks.dtype)}


def identify_code(*kinds: type) -> Key | None:
    """Identify the packages that classes and their ancestors come from; None in a notebook."""
    names = {each.__module__.partition(".")[0] for kind in kinds for each in kind.__mro__}
    found = {name: code_of(name) for name in sorted(names - sys.stdlib_module_names)}
    return None if None in found.values() else found


@cache
def code_of(package: str) -> Key | None:
    """Identify a package by its modules, for a version says nothing of what is being worked on.

    Its distribution's version, and those of what it requires, are told where it is called like the
    package.
    """
    module = sys.modules.get(package)
    roots = [Path(each) for each in getattr(module, "__path__", ())]
    files = sorted(path for root in roots for path in root.rglob("*.py"))
    if not roots and package != "__main__" and getattr(module, "__file__", None):
        files = [Path(str(getattr(module, "__file__", "")))]
    if not files:
        return None
    content = b"\0".join(path.read_bytes() for path in files)
    return {"code": _digest(content), "versions": _versions_of(package)}


def _versions_of(package: str) -> dict[str, str | None]:
    try:
        own = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return {}
    required = [re.split(r"[^\w.-]", line)[0] for line in own.requires or ()]
    return {package: own.version, **{name: _version_of(name) for name in required}}


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # an extra's
        return None


def identify_machine(device: torch.device) -> Key:
    """Identify what rounding depends on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "gpu": gpu,
        "dtype": str(torch.get_default_dtype()),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # another system than Linux
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def digest_of(key: Mapping[str, Any]) -> str:
    """Return a name for a key; raises `TypeError` for what JSON has no word for."""
    return _digest(json.dumps(key, sort_keys=True).encode())


def alike(one: Key, other: Key) -> bool:
    """Tell whether JSON has the same words for both."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _digest(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as stream:  # copied whatever its size, so never held in memory
        return hashlib.file_digest(stream, "sha256").hexdigest()
