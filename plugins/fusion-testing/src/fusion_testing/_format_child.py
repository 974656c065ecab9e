"""Open and read damaged models in a separate process, and print the outcome of each."""

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

#: Seconds after which reading one model ends the process.
TIMEOUT = 20
#: Bytes that the process may allocate, so that a damaged file cannot exhaust the machine.
_HEADROOM = 2**30


def main() -> None:
    """Read a spec, a base and directories from stdin; write one line of JSON per directory."""
    spec, base, paths = pickle.loads(sys.stdin.buffer.read())  # noqa: S301 - the suite sends it
    component = Component(spec, Plugin("(tested)", "", spec.target))
    component.load(spec.target)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + _HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    initial = _peak_memory()
    for path in paths:
        signal.alarm(TIMEOUT)
        outcome = _read_model(component, base, path)
        outcome["memory"] = _peak_memory() - initial
        print(json.dumps(outcome), flush=True)  # noqa: T201 - the suite reads it


def _read_model(component: Component[Any], base: WeightSource | None, path: str) -> dict[str, Any]:
    started = time.process_time()
    try:
        source = LocatedModel(Location(Path(path), path), component).open(base)
        how, detail = "read", _digest(source)
    except BrokenPluginError as error:
        how, detail = type(error).__name__, error.message
    except FusionError as error:
        how, detail = "refused", error.message
    except BaseException as error:  # noqa: BLE001 - report every error to the suite
        how, detail = type(error).__name__, str(error)
    return {"how": how, "detail": detail, "seconds": time.process_time() - started}


def _digest(source: WeightSource) -> str:
    digest = hashlib.sha256()
    for name, info in source.infos.items():
        digest.update(f"{name} {info.shape} {info.dtype}".encode())
        digest.update(view_bytes(source.tensor(name).reshape(-1).contiguous()))
    return digest.hexdigest()


def _peak_memory() -> int:
    """Return the peak memory of this process. getrusage would include its parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert peak is not None  # noqa: S101 - the kernel defines the format
    return 1024 * int(peak[1])
