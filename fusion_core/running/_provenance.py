"""The content of `provenance.json`: inputs, outputs and versions.

Two runs of one recipe on one machine write the same file except for `timings`. It does not depend
on the path of the output.
"""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.machine.distributions import CORE, find_core_libraries

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from fusion_core.plugins.distributions import Plugin
    from fusion_core.weights import Staging

SCHEMA = 1


def describe_environment(
    used: Collection[str], plugins: Iterable[Plugin], device: torch.device
) -> dict[str, Any]:
    """Return the versions that a result depends on.

    `used` names the plugins of the run. The libraries that they require are listed with them.
    """
    libraries = {library for name in used for library in find_core_libraries(name)} - {CORE, *used}
    versions = {plugin.distribution: plugin.version for plugin in plugins}
    return {
        "versions": {
            "fusion-core": version("fusion-core"),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "plugins": {
            **{name: versions[name] for name in versions if name in used},
            **{library: version(library) for library in sorted(libraries)},
        },
        "machine": platform.machine(),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


def describe_outputs(staging: Staging) -> dict[str, Any]:
    """Return the size and hash of every file of a finished directory, and a digest of all tensors.

    The hash of a shard covers its header only. `tensors_blake3` covers the tensors and does not
    depend on the shard size (`weights/writing/digest.py`).
    """
    files: dict[str, dict[str, Any]] = {}
    for shard in staging.shards.layout.shards:
        digest = hashlib.sha256(shard.header).hexdigest()
        files[shard.file] = {"bytes": shard.size, "header_sha256": digest}
    for name, (size, digest) in staging.side_files.items():
        files[name] = {"bytes": size, "sha256": digest}
    return {"files": dict(sorted(files.items())), "tensors_blake3": staging.tensors_digest}


def build_statement(parts: Mapping[str, Any], timings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `provenance.json`. Equal runs differ only in `timings`."""
    return {"schema": SCHEMA, **parts, "timings": timings}
