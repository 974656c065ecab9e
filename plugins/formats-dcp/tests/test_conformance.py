"""The conformance suite of fusion-testing, run on both layouts."""

from __future__ import annotations

import pickle
import struct
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed.checkpoint as dcp

from formats_dcp import plugin
from fusion_testing import FormatSuite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from fusion_core import FormatSpec

#: Torch writes shards of safetensors since 2.8.
WRITER: Any = getattr(dcp, "HuggingFaceStorageWriter", None)
SPECS = {spec.name: spec for spec in plugin.fusion_register_formats()}


class Shell:
    """A pickle that runs a program."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch /tmp/formats-dcp-was-run",)


def _replace_metadata(content: bytes) -> Callable[[Path], object]:
    return lambda model: (model / ".metadata").write_bytes(content)


class TestDistcp(FormatSuite):
    @pytest.fixture
    def spec(self) -> FormatSpec:
        return SPECS["dcp"]

    @pytest.fixture
    def write(self, save: Callable[[Path, Any], Path]) -> Any:
        def write(directory: Path, tensors: Mapping[str, Tensor]) -> None:
            save(directory, {"model": dict(tensors), "optim": {"lr": 0.1}})

        return write

    @pytest.fixture
    def hostile(self) -> Mapping[str, Callable[[Path], object]]:
        size = 8 * 2**20
        shared_tuple = b"\x80\x04}K\x01\x94" + b"".join(
            2 * (b"j" + struct.pack("<I", number)) + b"\x86\x94" for number in range(60)
        )
        pickles = {
            "a program": pickle.dumps(Shell()),
            "protocol 0": pickle.dumps(Shell(), protocol=0),
            "a memo of 64 GB": b"\x80\x04Nr\xff\xff\xff\xff" + b"q\x00" * 9 + b".",
            "a key that takes years to hash": shared_tuple + b"Ns.",
            "a deep list": b"\x80\x04" + b"]" * size + b"a" * size + b".",
            "many objects": b"\x80\x04]" + b"]a" * (size // 2) + b".",
            "many references": b"\x80\x04]\x94" + b"h\x00a" * (size // 3) + b".",
            "many marks": b"\x80\x04]" + b"(e" * (size // 2) + b".",
            "a long text": b"\x80\x04X\xff\xff\xff\x7f.",
            "too much metadata": b"\x80\x04" + b"N" * (9 * 2**20) + b".",
        }
        return {name: _replace_metadata(content) for name, content in pickles.items()}


@pytest.mark.skipif(WRITER is None, reason="this version of torch does not write the layout")
class TestSafetensors(FormatSuite):
    @pytest.fixture
    def spec(self) -> FormatSpec:
        return SPECS["dcp-safetensors"]

    @pytest.fixture
    def write(self) -> Any:
        def write(directory: Path, tensors: Mapping[str, Tensor]) -> None:
            writer = WRITER(str(directory), save_distributed=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dcp.save(dict(tensors), storage_writer=writer)

        return write
