"""Whether a base is the model that an adapter was trained on.

Unless both are local directories, only their names can be compared. Quantised copies of a model
count as that model, because QLoRA trains on them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core import hub
from fusion_core.files import open_named, report_unreadable
from fusion_core.weights import Contradiction
from fusion_lora.reading.config import ADAPTER_CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from fusion_core import WeightSource

_QUANTISED = re.compile(r"(-(unsloth|dynamic|bnb|hf|gptq|awq|gguf|fp8|int[48]|[48]bit|nf4))+$")
_HEX = re.compile(r"[0-9a-f]{7,40}")
_LONGEST_NAME = 200
_SAMPLE = 2**16


def compare_base(
    adapter: Mapping[str, Any], base: WeightSource, config: Mapping[str, Any]
) -> Iterator[Contradiction]:
    """Compare the model that an adapter names with the base, which has this configuration."""
    trained_on, used = adapter.get("base_model_name_or_path"), base.describe()
    if not isinstance(trained_on, str) or not trained_on:
        return
    path, is_local = Path(used), _exists(used)
    is_remote = not is_local and hub.looks_like_id(used) and hub.parse(used).is_pinned
    is_serious: bool | None = None
    if _exists(trained_on):
        is_serious = _differ(Path(trained_on), path) if is_local else None
    elif hub.looks_like_id(trained_on) and (is_local or is_remote):
        names = {used}
        if is_local:
            names |= {path.stem, path.parent.name, _cached_repository(path)}
            names.add(str(config.get("_name_or_path") or ""))
        is_called_so = _bare(trained_on) in map(_bare, names)
        is_serious = None if is_called_so else is_remote
    if is_serious is not None:
        subject = f"{ADAPTER_CONFIG} base_model_name_or_path"
        problem = f"{trained_on[:_LONGEST_NAME]!r}, the base is {used}"
        yield Contradiction(subject, problem, is_serious=is_serious)


def compare_revision(adapter: Mapping[str, Any], base: WeightSource) -> Iterator[Contradiction]:
    """Compare the revision that an adapter names with the commit of the base, if it is known.

    A branch or a tag may be that commit or not: only the hub knows.
    """
    revision, used = adapter.get("revision"), base.describe()
    if not isinstance(revision, str) or revision in {"", "main"}:
        return
    if _HEX.fullmatch(revision) is None or not (_commit(used) or "").startswith(revision):
        problem = f"{revision[:_LONGEST_NAME]!r}, the base is {used}, which may be another revision"
        yield Contradiction(f"{ADAPTER_CONFIG} revision", problem, is_serious=False)


def _commit(used: str) -> str | None:
    """Return the commit of a model on the hub or in its cache; None for any other."""
    if not _exists(used):
        return hub.parse(used).revision if hub.looks_like_id(used) else None
    parts = Path(used).absolute().parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None


def _exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises for texts that are not paths


def _bare(name: str) -> str:
    """Return a model's name without owner, revision and quantisation."""
    last = name.rstrip("/").rpartition("/")[2].partition("@")[0][:_LONGEST_NAME].lower()
    return _QUANTISED.sub("", last).removeprefix("meta-")


def _cached_repository(path: Path) -> str:
    """Return the name of the repository if a path is in its hub cache, else an empty text."""
    folders = (part for part in path.absolute().parts if part.startswith("models--"))
    return next(folders, "").replace("--", "/")


def _differ(one: Path, other: Path) -> bool | None:
    """Tell whether two models differ: None if they do not, False if it cannot be told."""
    with report_unreadable(one):
        if one.samefile(other):
            return None
        files, other_files = (
            sorted(path.glob("*.safetensors")) if path.is_dir() else [path] for path in (one, other)
        )
        if [file.stat().st_size for file in files] != [file.stat().st_size for file in other_files]:
            return False
        return None if all(map(_look_alike, files, other_files)) else True


def _look_alike(one: Path, other: Path) -> bool:
    """Compare two files of one size at their middle and end, where the weights are."""
    size = one.stat().st_size
    with (
        os.fdopen(open_named(one), "rb") as stream,
        os.fdopen(open_named(other), "rb") as other_stream,
    ):
        for offset in (size // 2, max(0, size - _SAMPLE)):
            stream.seek(offset)
            other_stream.seek(offset)
            if stream.read(_SAMPLE) != other_stream.read(_SAMPLE):
                return False
    return True
