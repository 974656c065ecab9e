"""A client of the Hugging Face Hub that gives the rest of the program local paths.

Only this package imports huggingface_hub, and only when a function needs the hub, so importing the
package is cheap. It knows repositories and files, not their contents.

    with hub.session(progress):
        pinned = hub.resolve(hub.parse("org/name@v1"))
        directory = hub.download(pinned, ["config.json", "*.safetensors"])
"""

from fusion_core.hub._cache import assets_directory
from fusion_core.hub._client import beginning, download, files, listing, resolve, session
from fusion_core.hub._conversions import conversion, split_files
from fusion_core.hub._downloads import Size, Wanted, check_room, fetch, size_of
from fusion_core.hub._errors import advising
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
