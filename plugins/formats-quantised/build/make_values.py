"""Store a small checkpoint of each case with the values that its reference library reads.

Run it in an environment with the libraries of the test session `quantised`:

    python plugins/formats-quantised/build/make_values.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

TESTS = Path(__file__).parents[1] / "tests"
sys.path.append(str(TESTS))
from references import CASES, describe_library  # noqa: E402 - it is next to the tests

SEED, ROWS, WIDTH = 0, 32, 64


def main() -> None:
    """Write one file per case."""
    (TESTS / "values").mkdir(exist_ok=True)
    for case, make in CASES.items():
        reference = make((SEED, ROWS, WIDTH))
        stored = {
            f"stored/{name}": tensor.contiguous() for name, tensor in reference.tensors.items()
        }
        expected = {
            f"expected/{name}": tensor.contiguous() for name, tensor in reference.expected.items()
        }
        metadata = {
            "library": describe_library(reference),
            "dtype": reference.dtype,
            "config": json.dumps(reference.config),
        }
        save_file(stored | expected, TESTS / "values" / f"{case}.safetensors", metadata)
        print(case, metadata["library"])


if __name__ == "__main__":
    main()
