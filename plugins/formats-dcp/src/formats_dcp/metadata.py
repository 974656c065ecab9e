"""The file `.metadata` of a distributed checkpoint: which shard of which tensor is where.

It is a pickle of torch's class `Metadata`. `pickles` reads it without torch's classes, so the
metadata of other versions of torch and of Megatron is read without these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from formats_dcp.pickles import Global, Record, UnsafePickleError, read_pickle
from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_METADATA = "torch.distributed.checkpoint.metadata"
#: The classes of metadata, by module. Older versions of torch kept some elsewhere.
_CLASSES = {
    _METADATA: {
        *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
        *("TensorProperties", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed._shard.sharded_tensor.metadata": {"TensorProperties", "MEM_FORMAT_ENCODING"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
    "collections": {"OrderedDict"},
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreMetadata"},
}
_FILE = re.compile(r"[\w.-]{1,200}\.distcp")
DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


@dataclass(frozen=True, slots=True)
class Stored:
    """Where an item of the checkpoint is: bytes of a file."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A box of a tensor: its first index and its size in each dimension, and where it is."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    stored: Stored | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the checkpoint. `path` holds the keys of the nested state dict."""

    name: str
    path: tuple[str, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    shards: tuple[Shard, ...]


def is_allowed(named: Global) -> bool:
    """Tell whether metadata may name a class or function: those of `Metadata`, and dtypes."""
    if named.module == "torch" and named.name in DTYPES:
        return True
    return named.name in _CLASSES.get(named.module, ())


def parse_metadata(content: bytes, path: str) -> tuple[list[Entry], list[str]]:
    """Return the tensors in a `.metadata` file, and the names of its other objects.

    Raises `CheckpointError` naming `path` for anything but the metadata of a checkpoint.
    """
    calls: dict[str, Callable[[tuple[Any, ...]], Any]] = {
        "Size": lambda arguments: arguments[0],
        "OrderedDict": lambda _arguments: {},
    }
    try:
        metadata = _fields(read_pickle(content, is_allowed, calls), "Metadata", "MCoreMetadata")
        return _list_entries(metadata)
    except UnsafePickleError as error:
        raise CheckpointError(
            f"{path}: expected the metadata of a distributed checkpoint, got a pickle that is "
            f"refused: {error}",
            hint="The file is damaged, of another kind, or made to run code. Nothing was run.",
        ) from error


def _list_entries(metadata: Mapping[str, Any]) -> tuple[list[Entry], list[str]]:
    stored = _locate_items(metadata["storage_data"])
    paths = metadata.get("planner_data")
    paths = paths if isinstance(paths, dict) else {}
    entries, others = [], []
    for name, description in metadata["state_dict_metadata"].items():
        if not isinstance(name, str):
            raise UnsafePickleError("it has a tensor without a name")
        if description.kind.name == "BytesStorageMetadata":
            others.append(name)
            continue
        tensor = _fields(description, "TensorStorageMetadata")
        keys = paths.get(name, (name,))
        entries.append(
            Entry(
                name=name,
                path=tuple(map(str, keys)) if isinstance(keys, tuple) and keys else (name,),
                dtype=_dtype(tensor["properties"]),
                shape=_numbers(tensor["size"]),
                shards=tuple(_shard(name, chunk, stored) for chunk in tensor["chunks"]),
            )
        )
    return entries, others


def _locate_items(items: Mapping[Record, Record]) -> dict[tuple[str, tuple[int, ...]], Stored]:
    """Return where items are, by the tensor's name and the shard's offsets."""
    stored = {}
    for key, value in items.items():
        index, info = _fields(key, "MetadataIndex"), _fields(value, "_StorageInfo")
        if index.get("offset") is None:
            continue  # an object that is not a tensor
        if info.get("transform_descriptors"):
            raise UnsafePickleError(
                f"{index['fqn']!r} is stored by the extension {info['transform_descriptors'][0]!r}"
            )
        file, offset, length = info["relative_path"], info["offset"], info["length"]
        if type(file) is not str or _FILE.fullmatch(file) is None:
            raise UnsafePickleError(f"{file!r:.60} is not the name of a .distcp file")
        begin, size = _numbers((offset, length))
        stored[index["fqn"], _numbers(index["offset"])] = Stored(file, begin, size)
    return stored


def _shard(name: str, chunk: Record, stored: Mapping[tuple[str, tuple[int, ...]], Stored]) -> Shard:
    box = _fields(chunk, "ChunkStorageMetadata")
    offsets, sizes = _numbers(box["offsets"]), _numbers(box["sizes"])
    return Shard(offsets, sizes, stored.get((name, offsets)))


def _dtype(properties: Record) -> torch.dtype:
    """Return the dtype: the first item of a state that is a tuple."""
    state = properties.state
    named = state[0] if isinstance(state, tuple) else state["dtype"]
    return DTYPES[named.name]


def _fields(record: object, *kinds: str) -> Mapping[str, Any]:
    if not isinstance(record, Record) or record.kind.name not in kinds:
        kind = record.kind if isinstance(record, Record) else type(record).__name__
        raise UnsafePickleError(f"it has a {kind} in place of a {kinds[0]}")
    if not isinstance(record.state, dict):
        raise UnsafePickleError(f"its {kinds[0]} has no fields")
    return record.state


def _numbers(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or any(
        type(value) is not int or value < 0 for value in values
    ):
        raise UnsafePickleError(f"{values!r:.60} are not sizes")
    return values
