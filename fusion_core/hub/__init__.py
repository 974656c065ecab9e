"""A client of the Hugging Face Hub that gives the rest of the program local paths.

Only this package imports huggingface_hub, and only when a function needs the hub, so importing the
package is cheap. It knows repositories and files, not their contents.

    with hub.session(progress):
        pinned = hub.resolve(hub.parse("org/name@v1"))
        directory = hub.download(pinned, ["config.json", "*.safetensors"])
"""

from fusion_core._moved import refuse_old_names
from fusion_core.hub._advice import DOWNLOAD, LOG_IN, Advice
from fusion_core.hub._cache import assets_directory, endpoint
from fusion_core.hub._client import (
    download,
    download_paths,
    list_files,
    read_beginning,
    resolve,
    session,
)
from fusion_core.hub._conversions import find_conversion, find_split
from fusion_core.hub._downloads import (
    DownloadSize,
    FileRequest,
    check_space,
    download_requests,
    measure_download,
)
from fusion_core.hub._errors import add_advice, report_hub_errors
from fusion_core.hub.reference import Reference, looks_like_id, parse

__all__ = [
    "DOWNLOAD",
    "LOG_IN",
    "Advice",
    "DownloadSize",
    "FileRequest",
    "Reference",
    "add_advice",
    "assets_directory",
    "check_space",
    "download",
    "download_paths",
    "download_requests",
    "endpoint",
    "find_conversion",
    "find_split",
    "list_files",
    "looks_like_id",
    "measure_download",
    "parse",
    "read_beginning",
    "report_hub_errors",
    "resolve",
    "session",
]

__getattr__ = refuse_old_names(__name__)
