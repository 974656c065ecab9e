"""What went in, what came out, with which versions: the data of `provenance.json`.

Two runs of one recipe on one machine give the same file but for `timings`. Nothing here depends on
where the output lies.
"""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.machine.installed import CORE, libraries_of
from fusion_core.weights.source import memory_of
from fusion_core.weights.writing.digest import bytes_digest, tensors_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fusion_core.plugins.distributions import Plugin
    from fusion_core.weights import Staging, TensorInfo, WeightSource

SCHEMA = 1


def environment(plugins: set[str], found: list[Plugin], device: torch.device) -> dict[str, Any]:
    """Name the versions that a result depends on; `plugins` are those that the run used.

    The libraries that these plugins require count with them.
    """
    libraries = {library for name in plugins for library in libraries_of(name)} - {CORE, *plugins}
    return {
        "versions": {
            "fusion-core": version("fusion-core"),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "plugins": {
            **{each.distribution: each.version for each in found if each.distribution in plugins},
            **{library: version(library) for library in sorted(libraries)},
        },
        "machine": platform.machine(),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


def outputs(staging: Staging) -> dict[str, Any]:
    """Identify every file of a finished directory, and the tensors by a digest of their own.

    Of a shard, the hash is its header's: what follows is the tensors, which `tensors_blake3` covers
    (see `tensor_digest`). That one does not depend on the shard size.
    """
    shards = {
        each.file: {"bytes": each.size, "header_sha256": hashlib.sha256(each.header).hexdigest()}
        for each in staging.shards.layout.shards
    }
    beside = {
        name: {"bytes": size, "sha256": digest}
        for name, (size, digest) in staging.side_files.items()
    }
    files = dict(sorted({**shards, **beside}.items()))
    return {"files": files, "tensors_blake3": staging.tensors_digest}


def tensor_digest(source: WeightSource) -> str:
    """Return the digest of a source's tensors that `provenance.json` gives of an output's.

    One BLAKE3 over a line for each tensor, in the order of their names: name, dtype as safetensors
    calls it, shape and BLAKE3 of the bytes, e.g. `head.bias F32 [10] 9f86…`.
    """
    return tensors_digest(
        {name: (info, bytes_digest(_chunks(source, info))) for name, info in source.infos.items()}
    )


def _chunks(source: WeightSource, info: TensorInfo) -> Iterator[memoryview]:
    for start, stop in source.ranges(info.name):
        values = source.read(info.name, start, stop).contiguous()
        yield memory_of(values)  # which live until the next are asked for


def statement(parts: Mapping[str, Any], timings: Mapping[str, Any]) -> dict[str, Any]:
    """Assemble the content of `provenance.json`; only `timings` differs between equal runs."""
    return {"schema": SCHEMA, **parts, "timings": timings}
