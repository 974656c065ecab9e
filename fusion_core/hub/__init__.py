"""The Hugging Face Hub: everything else gets local paths.

The only room that imports huggingface_hub, and only when something is asked of the hub: importing
this costs nothing. It knows repositories and files, not what is in them.

    with hub.session(progress):
        pinned = hub.resolve(hub.parse("org/name@v1"))
        directory = hub.download(pinned, ["config.json", "*.safetensors"])
"""

from fusion_core.hub._ahead import Wanted, check_room, fetch, size_of
from fusion_core.hub._cache import assets_directory
from fusion_core.hub._client import (
    Size,
    beginning,
    download,
    files,
    listing,
    resolve,
    session,
)
from fusion_core.hub._conversion import conversion
from fusion_core.hub._failures import advising
from fusion_core.hub._splits import split_files
from fusion_core.hub.reference import Reference, looks_like_id, parse

__all__ = [
    "Reference",
    "Size",
    "Wanted",
    "advising",
    "assets_directory",
    "beginning",
    "check_room",
    "conversion",
    "download",
    "fetch",
    "files",
    "listing",
    "looks_like_id",
    "parse",
    "resolve",
    "session",
    "size_of",
    "split_files",
]
