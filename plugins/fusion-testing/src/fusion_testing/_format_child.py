"""Opens and reads damaged models, and says what became of each: run in a process of its own."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import resource
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core.errors import BrokenPluginError, FusionError
from fusion_core.plugins.components import Component
from fusion_core.plugins.distributions import Plugin
from fusion_core.plugins.formats import LocatedModel
from fusion_core.weights.reading.location import Location
from fusion_core.weights.source import view_bytes

if TYPE_CHECKING:
    from fusion_core.weights import WeightSource

#: After so long a model that is still being read ends the process.
PATIENCE = 20
#: More memory than the process has at first cannot be had, so that no machine is brought down.
_HEADROOM = 2**30


def main() -> None:
    """Read a spec, a base and directories from stdin; write one line of JSON per directory."""
    spec, base, paths = pickle.loads(sys.stdin.buffer.read())  # noqa: S301 - from the suite
    component = Component(spec, Plugin("(tested)", "", spec.target))
    component.load(spec.target)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + _HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    at_first = _peak_memory()
    for path in paths:
        signal.alarm(PATIENCE)
        outcome = _outcome(component, base, path)
        answer = {**outcome, "memory": _peak_memory() - at_first}
        print(json.dumps(answer), flush=True)  # noqa: T201 - what the suite reads


def _outcome(component: Component[Any], base: WeightSource | None, path: str) -> dict[str, Any]:
    started = time.process_time()
    try:
        source = LocatedModel(Location(Path(path), path), component).open(base)
        how, what = "read", _digest(source)
    except BrokenPluginError as error:
        how, what = type(error).__name__, error.message
    except FusionError as error:
        how, what = "refused", error.message
    except BaseException as error:  # noqa: BLE001 - a format that lets anything out is found out
        how, what = type(error).__name__, str(error)
    return {"how": how, "what": what, "seconds": time.process_time() - started}


def _digest(source: WeightSource) -> str:
    digest = hashlib.sha256()
    for name, info in source.infos.items():
        digest.update(f"{name} {info.shape} {info.dtype}".encode())
        digest.update(view_bytes(source.tensor(name).reshape(-1).contiguous()))
    return digest.hexdigest()


def _peak_memory() -> int:
    """Return this program's own peak: the one that getrusage tells begins with its parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert peak is not None  # noqa: S101 - the kernel's own format
    return 1024 * int(peak[1])
