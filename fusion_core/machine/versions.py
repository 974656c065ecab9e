"""The versions that a result depends on. All processes of one run must agree on them."""

from __future__ import annotations

import platform
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

from fusion_core.machine.distributions import find_core_libraries, find_plugins, normalize_name

if TYPE_CHECKING:
    from collections.abc import Mapping


@lru_cache(maxsize=1)
def versions() -> Mapping[str, str]:
    """Return the versions of Python, torch, the core, and the plugins and their libraries.

    Libraries count if they build on the core. Python's version omits its patch and torch's the
    device it was built for, because neither changes what a processor computes.
    """
    plugins = {
        normalize_name(distribution.metadata["Name"]): distribution.version
        for _, distribution in find_plugins()
    }
    libraries = {library for plugin in plugins for library in find_core_libraries(plugin)}
    return {
        **{library: version(library) for library in libraries},
        **plugins,
        "fusion-core": version("fusion-core"),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": torch.__version__.partition("+")[0],
    }
