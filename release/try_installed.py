"""Try an installed distribution: `python release/try_installed.py fusion-ties`.

Imports its packages and plugins, and lists it by `fuse`, where nothing else is installed but what
it requires.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path

GROUP = "fusion_core.plugins"


def try_distribution(name: str) -> None:
    """Import a distribution and ask `fuse` for its plugins. Raises if something is missing."""
    import_module(name.replace("-", "_"))
    plugins = distribution(name).entry_points.select(group=GROUP)
    for plugin in plugins:
        plugin.load()
    fuse = Path(sys.executable).with_name("fuse")
    listed = subprocess.run([fuse, "list-plugins"], capture_output=True, text=True, check=True)
    if plugins and name not in listed.stdout:
        raise SystemExit(
            f"{name}: expected it in the output of fuse list-plugins:\n{listed.stdout}"
        )
    print(f"{name}: imported, {len(plugins)} plugins listed")


if __name__ == "__main__":
    try_distribution(sys.argv[1])
