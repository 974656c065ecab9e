"""Whether the base of a pool is the model that an adapter says it was trained on.

Names are all that there is to go by, unless both are directories here. Quantised copies of a model
count as that model: QLoRA trains on them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core import hub
from fusion_core.weights.aligning._difference import Doubt
from fusion_core.weights.reading.containment import open_named, reading
from fusion_core.weights.reading.location import ADAPTER_CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from fusion_core.weights.source import WeightSource

_QUANTISED = re.compile(r"(-(unsloth|dynamic|bnb|hf|gptq|awq|gguf|fp8|int[48]|[48]bit|nf4))+$")
_HEX = re.compile(r"[0-9a-f]{7,40}")
_LONGEST_NAME = 200
_SAMPLE = 2**16


def other_base(
    adapter: Mapping[str, Any], expert: str, base: WeightSource, config: Mapping[str, Any]
) -> Iterator[Doubt]:
    """Compare the model that an adapter names with the base, which has this configuration."""
    named, used = adapter.get("base_model_name_or_path"), base.describe()
    if not isinstance(named, str) or not named:
        return
    path, is_here = Path(used), _exists(used)
    is_remote = not is_here and hub.looks_like_id(used) and hub.parse(used).is_pinned
    serious: bool | None = None
    if _exists(named):
        serious = _differ(Path(named), path) if is_here else None
    elif hub.looks_like_id(named) and (is_here or is_remote):
        names = [used, path.stem, path.parent.name, config.get("_name_or_path"), _cached(path)]
        serious = None if _is_called(named, names if is_here else [used]) else is_remote
    if serious is not None:
        problem = f"{named[:_LONGEST_NAME]!r}, the base is {used}"
        yield Doubt(f"{ADAPTER_CONFIG} base_model_name_or_path", expert, problem, serious)


def other_revision(adapter: Mapping[str, Any], expert: str, base: WeightSource) -> Iterator[Doubt]:
    """Compare the revision that an adapter names with the commit of the base, where one is known.

    A branch or a tag may be that commit or not: only the hub knows.
    """
    stated, used = adapter.get("revision"), base.describe()
    if not isinstance(stated, str) or stated in {"", "main"}:
        return
    if _HEX.fullmatch(stated) is None or not (_commit(used) or "").startswith(stated):
        problem = f"{stated[:_LONGEST_NAME]!r}, and the base is {used}: it may be another revision"
        yield Doubt(f"{ADAPTER_CONFIG} revision", expert, problem, serious=False)


def _commit(used: str) -> str | None:
    """Return the commit of a model on the hub or in its cache; None for any other."""
    if not _exists(used):
        return hub.parse(used).revision if hub.looks_like_id(used) else None
    parts = Path(used).absolute().parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None


def _exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - Path's raises for what can be no path


def _is_called(named: str, names: Iterable[object]) -> bool:
    """Tell whether a name is one of several, whoever published it."""
    return _bare(named) in {_bare(name) for name in names if isinstance(name, str)}


def _bare(name: str) -> str:
    """Return a model's name without its owner, revision and how it is quantised."""
    last = name.rstrip("/").rpartition("/")[2].partition("@")[0][:_LONGEST_NAME].lower()
    return _QUANTISED.sub("", last).removeprefix("meta-")


def _cached(path: Path) -> str:
    """Return the name of the repository whose snapshot in a hub cache this is, if it is one."""
    found = (part for part in path.absolute().parts if part.startswith("models--"))
    return next(found, "").replace("--", "/")


def _differ(one: Path, other: Path) -> bool | None:
    """Tell whether two models are different ones: None if they are one, False if nothing tells."""
    with reading(one):
        if one.samefile(other):
            return None
        files = [_weights(one), _weights(other)]
        if [each.stat().st_size for each in files[0]] != [each.stat().st_size for each in files[1]]:
            return False
        return None if all(map(_look_alike, *files)) else True


def _weights(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def _look_alike(one: Path, other: Path) -> bool:
    """Compare two files of one size at their middle and end, where the weights are."""
    size = one.stat().st_size
    return all(
        _bytes_at(one, offset) == _bytes_at(other, offset)
        for offset in (size // 2, max(0, size - _SAMPLE))
    )


def _bytes_at(path: Path, offset: int) -> bytes:
    with os.fdopen(open_named(path), "rb") as stream:
        stream.seek(offset)
        return stream.read(_SAMPLE)
