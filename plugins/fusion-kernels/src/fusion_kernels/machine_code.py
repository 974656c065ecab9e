"""Machine code of loops: a machine's first merge compiles it, and later ones load it without numba.

LLVM loads an object file in milliseconds, and numba takes most of a second to import. The files lie
where Python's own compiled files do. A user who can write there can also change this package.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
from functools import cache
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import llvmlite.binding as llvm

from fusion_core.errors import DiskError
from fusion_core.files import write_durably

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG = logging.getLogger(__name__)
_TYPES = {"q": ctypes.c_int64, "f": ctypes.c_float}
_DIGEST = hashlib.sha256
_DIGEST_SIZE = 32
#: The files of this package that determine machine code, besides the loops.
_SOURCES = ("layout.py", "compiling.py", "machine_code.py")
_lock = Lock()
#: What owns the memory of loaded code.
_engines: list[llvm.ExecutionEngine] = []


def cache_directory() -> Path:
    """Return the directory of machine code, which may be emptied at any time.

    It is the package's `__pycache__` or, if that is not writable, one in the user's cache.
    """
    package = Path(__file__).parent
    if os.access(package, os.W_OK):
        return package / "__pycache__"
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "fusion-core" / "kernels"


def path_of(module: str, name: str) -> Path:
    """Return a loop's file. Its name has a hash of the sources, the versions and the processor."""
    digest = _DIGEST()
    package = Path(__file__).parent
    sources = [package / name for name in _SOURCES]
    for source in (*sources, *sorted(package.glob("loops/*.py"))):
        digest.update(source.read_bytes())
    machine = [llvm.get_process_triple(), llvm.get_host_cpu_name()]
    features = llvm.get_host_cpu_features().flatten()
    versions = [version("numba"), version("llvmlite")]
    digest.update("\0".join([*versions, *machine, features]).encode())
    return cache_directory() / f"{module}.{name}-{digest.hexdigest()[:32]}.code"


def compile_code(module: str, name: str) -> bytes:
    """Return the content of a loop's file: a digest, the types of its parameters, and its code."""
    from fusion_kernels.compiling import compile_loop

    parameters, code = compile_loop(module, name, _target())
    payload = parameters.encode() + b"\0" + code
    return _DIGEST(payload).digest() + payload


def load_loop(module: str, name: str) -> Callable[..., int]:
    """Return the loop `name` of `fusion_kernels.loops.module`, which releases Python's lock.

    The first call on a machine compiles it, which takes a second or two. For another processor,
    another version of a package, or other source, it is compiled again. So it is if the file is
    damaged.
    """
    with _lock:
        path = path_of(module, name)
        content = _read(path)
        if content is None:
            content = compile_code(module, name)
            _write(path, content)
        return _load(name, content)


@cache
def _target() -> llvm.TargetMachine:
    """Return this machine's processor as LLVM's target.

    LLVM avoids registers of 512 bits by default, because they slow down the clock of older
    processors. It does not slow down on those with `avx512fp16`.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    is_wide = features.get("avx512fp16", False)
    is_x86 = llvm.get_process_triple().startswith(("x86", "i686"))
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=features.flatten() + (",-prefer-256-bit" if is_wide else ""),
        opt=3,
        reloc="static" if is_x86 else "default",
        codemodel="jitdefault",
        jit=True,
    )


def _read(path: Path) -> bytes | None:
    """Return the content of a file that is whole, or None."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, payload = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
    return content if _DIGEST(payload).digest() == digest else None


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(path, content)
    except (OSError, DiskError) as error:
        _LOG.warning("compiled kernels cannot be cached in %s: %s", path.parent, error)


def _load(name: str, content: bytes) -> Callable[..., int]:
    parameters, _, code = content[_DIGEST_SIZE:].partition(b"\0")
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    types: list[Any] = [_TYPES[kind] for kind in parameters.decode()]
    return ctypes.CFUNCTYPE(ctypes.c_int64, *types)(engine.get_function_address(name))
