"""Identities of what a measurement depends on: weights, model pool, task, code and machine.

An identity is JSON data. It is None if it cannot be determined, and then nothing is cached.
"""

from __future__ import annotations

import hashlib
import json
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

from fusion_core.machine.devices import name_processor
from fusion_core.machine.distributions import (
    find_core_libraries,
    find_plugins,
    installed_version,
    read_metadata_field,
    required_names,
)
from fusion_core.weights import AlignedSource, CastSource, CheckpointSource, RenamedSource
from fusion_core.weights.aligning.vocabulary import MeanSource, PaddedSource
from fusion_core.weights.origin import Origin
from fusion_core.weights.reading.assets import list_side_files
from fusion_core.weights.source import collect_origins

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.weights import WeightSource

Key = dict[str, Any]

#: Views, which the sources that they read and the tensors that they show identify.
_VIEWS = (AlignedSource, CastSource, MeanSource, PaddedSource, RenamedSource)
_MODULE_SUFFIXES = {".py", *(f".{suffix.rpartition('.')[2]}" for suffix in EXTENSION_SUFFIXES)}


def identify_model(pool: ModelPool[Any], source: WeightSource) -> Key | None:
    """Identify the live model that a pool builds from weights."""
    sources = [source, pool.base] if source.is_delta and pool.base is not None else [source]
    weights = [identify_weights(operand) for operand in sources]
    if None in weights:  # models in memory: their pool cannot identify its options either
        return None
    options = pool.identity()
    if options is None:
        return None
    return {
        "weights": weights,
        "assets": file_digests(pool.assets()),
        "own_files": _own_files(source),
        "options": options,
    }


def file_digests(files: Mapping[str, bytes | Path]) -> dict[str, str]:
    """Return the SHA-256 of files by name."""
    return {name: content_digest(content) for name, content in sorted(files.items())}


def _own_files(source: WeightSource) -> dict[str, str]:
    """Return the digests of the side files in a model's directory.

    A pool builds weights of another architecture by them, and other programs read them all.
    """
    if not isinstance(source, CheckpointSource) or not source.path.is_dir():
        return {}
    return file_digests(list_side_files(source.path))


def identify_weights(source: WeightSource) -> Key | None:
    """Identify weights by their files and how they are read. Return None for weights in memory."""
    operands = [identify_weights(operand) for operand in source.sources]
    origin = source.origin or Origin()
    is_pinned = origin.wanted is not None  # a commit identifies it without a download
    files = {"commit": source.describe()} if is_pinned else dict(origin.files)
    if None in operands or not (files or (operands and type(source) in _VIEWS)):
        return None
    infos = [[info.name, info.shape, str(info.dtype)] for info in source.infos.values()]
    names = dict(source.names) if isinstance(source, RenamedSource) else {}
    paths = [] if is_pinned else [str(path.resolve()) for path in origin.stamps]
    changed_ns = (
        [] if is_pinned else [ns for part in collect_origins(source) for ns in part.changed_ns]
    )
    return {
        "kind": type(source).__qualname__,
        # commands may spell a path differently
        "source": paths or (source.describe() if files else ""),
        "files": files,
        "changed_ns": changed_ns,
        "seen": content_digest(json.dumps([infos, names]).encode()),
        "of": operands,
    }


def identify_task(tasks: TaskPool[Any], name: str) -> Key | None:
    """Identify a task, its data, and the dtype of the models that it measures."""
    data = tasks.identity(name)
    return None if data is None else {"task": name, "data": data, "dtype": str(tasks.dtype)}


def identify_code(*kinds: type) -> Key | None:
    """Identify the packages of classes and their ancestors. Return None for code in a notebook.

    Libraries that such a package requires count with their code if they build on this framework,
    because people work on them as on plugins. Other libraries count with their versions.
    """
    modules = (ancestor.__module__ for kind in kinds for ancestor in kind.__mro__)
    names = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
    for package in sorted(names):
        for distribution in find_distributions(package):
            libraries = find_core_libraries(str(read_metadata_field(distribution, "Name")))
            names |= {library.replace("-", "_") for library in libraries}
    code = {name: identify_package(name) for name in sorted(names)}
    return None if None in code.values() else code


@cache
def identify_package(package: str) -> Key | None:
    """Identify a package by the content of its modules, because a version misses local changes.

    The versions are those of its distributions and of everything that these require.
    """
    files = dict(_module_files(package))
    if not files:
        return None
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0{content_digest(path)}\0".encode())
    versions: dict[str, str | None] = {}
    for distribution in find_distributions(package):
        versions |= {name: installed_version(name) for name in required_names(distribution)}
        versions[str(read_metadata_field(distribution, "Name"))] = distribution.version
    return {"code": digest.hexdigest(), "versions": versions}


def _module_files(package: str) -> Iterator[tuple[str, Path]]:
    """Yield the Python and compiled modules of a package, by relative path."""
    if package in sys.modules:
        module = sys.modules[package]
        roots, file = getattr(module, "__path__", ()), getattr(module, "__file__", None)
    else:
        spec = find_spec(package)
        roots = (spec and spec.submodule_search_locations) or ()
        file = spec and spec.origin
    for root in map(Path, roots):
        for path in root.rglob("*"):
            if path.suffix in _MODULE_SUFFIXES:
                yield str(path.relative_to(root)), path
    if file and not roots and package != "__main__":
        yield package, Path(file)


@cache
def find_distributions(package: str) -> tuple[metadata.Distribution, ...]:
    """Return the distributions that declare a plugin in a package, or have its name.

    Cached, because a search reads the metadata of everything that is installed, and a run asks for
    every package on each measurement.
    """
    distributions = {
        read_metadata_field(distribution, "Name"): distribution
        for entry_point, distribution in find_plugins()
        if re.split(r"[.:]", entry_point.value)[0] == package
    }
    with suppress(metadata.PackageNotFoundError):
        distribution = metadata.distribution(package)
        distributions[read_metadata_field(distribution, "Name")] = distribution
    return tuple(distributions.values())


def identify_machine(device: torch.device) -> Key:
    """Identify what rounding depends on."""
    return {
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "dtype": str(torch.get_default_dtype()),
        "processor": name_processor(),
        "threads": torch.get_num_threads(),
    }


def key_digest(key: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a key. Raises `TypeError` if it is not JSON data."""
    return content_digest(json.dumps(key, sort_keys=True).encode())


def content_digest(content: bytes | Path) -> str:
    """Return the SHA-256 of a side file, given as its content or as its path."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as stream:  # of any size, so never held in memory
        return hashlib.file_digest(stream, "sha256").hexdigest()
