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

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core.plugins.distributions import Plugin
    from fusion_core.weights import Staging

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
    (`weights/writing/digest.py`). That one does not depend on the shard size.
    """
    shards = {
        shard.file: {"bytes": shard.size, "header_sha256": hashlib.sha256(shard.header).hexdigest()}
        for shard in staging.shards.layout.shards
    }
    beside = {
        name: {"bytes": size, "sha256": digest}
        for name, (size, digest) in staging.side_files.items()
    }
    files = dict(sorted({**shards, **beside}.items()))
    return {"files": files, "tensors_blake3": staging.tensors_digest}


def statement(parts: Mapping[str, Any], timings: Mapping[str, Any]) -> dict[str, Any]:
    """Assemble the content of `provenance.json`; only `timings` differs between equal runs."""
    return {"schema": SCHEMA, **parts, "timings": timings}
