"""The Hugging Face Hub: everything else gets local paths.

The only room that imports huggingface_hub, and only when something is asked of the hub: importing
this costs nothing. It knows repositories and files, not what is in them.

    with hub.session(progress):
        pinned = hub.resolve(hub.parse("org/name@v1"))
        directory = hub.download(pinned, ["config.json", "*.safetensors"])
"""

from fusion_core.hub.client import (
    Size,
    beginning,
    download,
    files,
    listing,
    resolve,
    session,
    size,
)
from fusion_core.hub.reference import Reference, looks_like_id, parse

__all__ = [
    "Reference",
    "Size",
    "beginning",
    "download",
    "files",
    "listing",
    "looks_like_id",
    "parse",
    "resolve",
    "session",
    "size",
]
