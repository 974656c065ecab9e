"""The content of `provenance.json`: recipe, inputs, outputs and versions.

Two runs of one recipe on one machine write the same file except for `run`. It does not depend on
the path of the output.
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

import torch

from fusion_core.machine.devices import name_processor
from fusion_core.machine.distributions import CORE, find_core_libraries, versions_of_requirements
from fusion_core.recipe.paths import strip_folders
from fusion_core.weights.writing.digest import shard_digest
from fusion_core.weights.writing.provenance import (
    FILE_DIGEST,
    PREDICATE_TYPE,
    SHARD_DIGEST,
    STATEMENT_TYPE,
    encode_statement,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from fusion_core.plugins.distributions import Plugin
    from fusion_core.weights import Staging


def describe_environment(
    used: Collection[str], plugins: Iterable[Plugin], device: torch.device
) -> dict[str, Any]:
    """Return the versions that a result depends on.

    `used` names the plugins of the run. The libraries that they require and that build on the core
    are listed with them, others with torch.
    """
    libraries = {library for name in used for library in find_core_libraries(name)} - {CORE, *used}
    versions = {plugin.distribution: plugin.version for plugin in plugins}
    return {
        "versions": {
            **versions_of_requirements({*used, *libraries} - {CORE}),
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


def build_statement(staging: Staging, parts: Mapping[str, Any], run: Mapping[str, Any]) -> bytes:
    """Return the content of `provenance.json` for a finished directory.

    It is an in-toto statement about every file of the directory. `parts` are fields of the
    predicate, as docs/reference/provenance.md describes them; paths in them are reduced to names.
    `run` are those that differ between equal runs.
    """
    digests = staging.tensor_digests
    public = cast("dict[str, Any]", strip_folders(parts))
    processor = name_processor(torch.device(parts["device"]))
    outputs = {
        "tensors_blake3": staging.tensors_digest,
        "tensors": {
            shard.file: {info.name: digests[info.name] for info in shard.infos}
            for shard in staging.shards.layout.shards
        },
    }
    return encode_statement(
        {
            "_type": STATEMENT_TYPE,
            "subject": _describe_files(staging),
            "predicateType": PREDICATE_TYPE,
            "predicate": {**public, "processor": processor, "outputs": outputs, "run": run},
        }
    )


def _describe_files(staging: Staging) -> list[dict[str, Any]]:
    """Return the size and the digest of every file, sorted by name.

    A SHA-256 of the tensors would take as long as a linear merge, and the writer has the BLAKE3 of
    each. So the digest of a shard covers its header and these.
    """
    digests = staging.tensor_digests
    files: dict[str, tuple[int, dict[str, str]]] = {}
    for shard in staging.shards.layout.shards:
        digest = shard_digest(shard.header, [digests[info.name] for info in shard.infos])
        files[shard.file] = shard.size, {SHARD_DIGEST: digest}
    for name, (size, digest) in staging.side_files.items():
        files[name] = size, {FILE_DIGEST: digest}
    return [
        {"name": name, "digest": digest, "annotations": {"bytes": size}}
        for name, (size, digest) in sorted(files.items())
    ]
