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

from fusion_core.weights import CheckpointSource
from fusion_core.weights.source import memory_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core.model_pool import ModelPool
    from fusion_core.plugins import Plugin
    from fusion_core.weights import WeightSource

SCHEMA = 1


def environment(plugins: set[str], found: list[Plugin], device: torch.device) -> dict[str, Any]:
    """Name the versions that a result depends on; `plugins` are those that the run used."""
    return {
        "versions": {
            "fusion-core": version("fusion-core"),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "plugins": {
            each.distribution: each.version for each in found if each.distribution in plugins
        },
        "machine": platform.machine(),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


def counts(pool: ModelPool[Any], merged: WeightSource) -> dict[str, int]:
    """Account for every tensor of an aligned pool: merged, copied, or dropped by a policy."""
    floating = sum(info.dtype.is_floating_point for info in merged.infos.values())
    copied = len(merged.infos) - floating
    return {"merged": floating, "copied": copied, "dropped": len(pool.dropped)}


def outputs(directory: Path) -> dict[str, Any]:
    """Hash every file of a finished directory, and the tensors apart from how they are sharded."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _file_digest(path)}
        for path in sorted(directory.iterdir())
        if path.is_file()
    }
    return {"files": files, "tensors_sha256": tensor_digest(CheckpointSource(directory))}


def tensor_digest(source: WeightSource) -> str:
    """Return one SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(source.infos):
        info = source.infos[name]
        digest.update(f"{name}\0{info.dtype}\0{list(info.shape)}\0".encode())
        for start, stop in source.cut.ranges(info):
            values = source.read(name, start, stop).contiguous()
            digest.update(memory_of(values))
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def statement(parts: Mapping[str, Any], timings: Mapping[str, Any]) -> dict[str, Any]:
    """Assemble the content of `provenance.json`; only `timings` differs between equal runs."""
    return {"schema": SCHEMA, **parts, "timings": timings}
