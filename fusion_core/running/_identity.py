"""What a measured number depends on: weights, how a model is built of them, the task, the code.

Whatever is not known to be the same is None, and then nothing is remembered.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
from contextlib import suppress
from functools import cache
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.machine.installed import declared_plugins, header, libraries_of, requirements
from fusion_core.weights import AlignedSource, CastSource, RenamedSource
from fusion_core.weights.aligning.vocabulary import MeanSource, PaddedSource
from fusion_core.weights.origin import Origin
from fusion_core.weights.source import origins

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.weights import WeightSource

Key = dict[str, Any]

#: Sources that are known by what they read from, and by what is seen of their tensors.
_SEEN_THROUGH = (AlignedSource, CastSource, MeanSource, PaddedSource, RenamedSource)
#: What the files of modules end in.
_MODULES = {".py", *(f".{suffix.rpartition('.')[2]}" for suffix in EXTENSION_SUFFIXES)}


def identify_model(pool: ModelPool[Any], source: WeightSource) -> Key | None:
    """Identify a live model that a pool builds of weights."""
    read = [source, pool.base] if source.is_delta and pool.base is not None else [source]
    weights = [identify_weights(each) for each in read]
    if None in weights:  # those in memory: the options of their pool cannot be told, either
        return None
    options = pool.identity()
    if options is None:
        return None
    return {"weights": weights, "assets": digests_of(pool.assets()), "options": options}


def digests_of(files: Mapping[str, bytes | Path]) -> dict[str, str]:
    """Return the SHA-256 of files by their names."""
    return {name: _digest(content) for name, content in sorted(files.items())}


def identify_weights(source: WeightSource) -> Key | None:
    """Identify weights by the files that they are read from, and how; None for those in memory."""
    within = [identify_weights(each) for each in source.sources]
    origin = source.origin or Origin()
    is_pinned = origin.wanted is not None  # by a commit: it is not downloaded to be told
    files = {"commit": source.describe()} if is_pinned else dict(origin.files)
    if None in within or not (files or (within and type(source) in _SEEN_THROUGH)):
        return None
    infos = [[info.name, info.shape, str(info.dtype)] for info in source.infos.values()]
    names = dict(source.names) if isinstance(source, RenamedSource) else {}
    return {
        "kind": type(source).__qualname__,
        "source": source.describe(),
        "files": files,
        "changed_ns": [] if is_pinned else [n for each in origins(source) for n in each.changed_ns],
        "seen": _digest(json.dumps([infos, names]).encode()),
        "of": within,
    }


def identify_task(tasks: TaskPool[Any], name: str) -> Key | None:
    """Identify a task, what it measures on, and what its models are built in."""
    own = tasks.identity(name)
    return None if own is None else {"task": name, "data": own, "dtype": str(tasks.dtype)}


def identify_code(*kinds: type) -> Key | None:
    """Identify the packages that classes and their ancestors come from; None in a notebook.

    Libraries that such a package requires count with their code if they build on this framework,
    for they are worked on like plugins; others count with their versions.
    """
    modules = (ancestor.__module__ for kind in kinds for ancestor in kind.__mro__)
    names = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
    for package in sorted(names):
        names |= _libraries_of(package)
    code = {name: code_of(name) for name in sorted(names)}
    return None if None in code.values() else code


@cache
def code_of(package: str) -> Key | None:
    """Identify a package by its modules, for a version says nothing of what is being worked on.

    The versions are those of its distributions, and of all that these require.
    """
    files = dict(_files_of(package))
    if not files:
        return None
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0{_digest(path)}\0".encode())
    return {"code": digest.hexdigest(), "versions": _versions_of(package)}


def _files_of(package: str) -> Iterator[tuple[str, Path]]:
    """Yield the modules of a package, Python's and compiled ones; none if it has no files."""
    if package in sys.modules:
        module = sys.modules[package]
        roots, file = getattr(module, "__path__", ()), getattr(module, "__file__", None)
    else:
        spec = find_spec(package)
        roots = (spec and spec.submodule_search_locations) or ()
        file = spec and spec.origin
    for root in map(Path, roots):
        files = (path for path in root.rglob("*") if path.suffix in _MODULES)
        yield from ((str(path.relative_to(root)), path) for path in files)
    if file and not roots and package != "__main__":
        yield package, Path(file)


def _libraries_of(package: str) -> set[str]:
    """Return the packages that a package requires and that build on the core, at any remove."""
    names = (str(header(own, "Name")) for own in _distributions_of(package))
    return {library.replace("-", "_") for name in names for library in libraries_of(name)}


def _distributions_of(package: str) -> list[metadata.Distribution]:
    """Return the distributions of a package: called like it, or declaring a plugin in it."""
    plugins = declared_plugins()
    found = [each for point, each in plugins if re.split(r"[.:]", point.value)[0] == package]
    with suppress(metadata.PackageNotFoundError):
        found.append(metadata.distribution(package))
    return list({header(each, "Name"): each for each in found}.values())


def _versions_of(package: str) -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for own in _distributions_of(package):
        required = {name: _version_of(name) for name in requirements(own)}
        versions |= {str(header(own, "Name")): own.version, **required}
    return versions


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
