"""A check of the format suite catches each fault planted into a sound format."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest
from suites import run_suites

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A format of one file: the length of the header, a JSON header, the values.
FORMATS = '''
    import hashlib, json, os, pickle, struct
    import torch
    from fusion_core import TensorInfo
    from fusion_core.errors import CheckpointError
    from fusion_core.weights import FileSource, Origin, StoredTensor, WeightSource, parse_json
    from fusion_core.weights import stamp_of

    DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float16, torch.int64)}

    def numbers(data, dtype):
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)

    class Sound(FileSource):
        def find_tensors(self):
            header = self.open("m.bin", 2**20)
            (length,) = struct.unpack("<Q", header.read(8))
            described = parse_json(header.read(length), path=str(header.path))
            for name, (dtype, shape, at) in described.items():
                info = TensorInfo(name, tuple(shape), DTYPES[dtype])
                yield StoredTensor("m.bin", info, 8 + length + at)

    class ByHand(WeightSource):
        """The same without FileSource; works only on sound files."""
        def __init__(self, location):
            self.location = location
            self.path = location.path / "m.bin"
            if not self.path.is_file():
                raise CheckpointError(f"{self.path} is not a regular file")
            with open(self.path, "rb") as stream:
                self.size = os.fstat(stream.fileno()).st_size
                stamp = stamp_of(os.fstat(stream.fileno()))
                (length,) = struct.unpack("<Q", stream.read(8))
                text = stream.read(length)
            self.start = 8 + length
            self.described = json.loads(text)
            self.infos = {
                name: TensorInfo(name, tuple(shape), DTYPES[dtype])
                for name, (dtype, shape, _) in self.described.items()
            }
            digest = hashlib.sha256(text).hexdigest()
            self.own_origin = Origin(files={"m.bin": {"header": digest}}, stamps={self.path: stamp})

        @property
        def origin(self):
            return self.own_origin

        def read(self, name, start, stop):
            info = self.infos[name]
            size = info.dtype.itemsize
            with open(self.path, "rb") as stream:
                stream.seek(self.start + self.described[name][2] + start * size)
                data = bytearray(stream.read((stop - start) * size))
            return numbers(data, info.dtype)

    class ForgottenOffset(Sound):
        def read(self, name, start, stop):
            return super().read(name, 0, stop - start)

    class WholeTensor(Sound):
        def read(self, name, start, stop):
            return super().read(name, 0, self.infos[name].numel)

    class OtherDtype(Sound):
        def read(self, name, start, stop):
            return super().read(name, start, stop).float()

    class InItsShape(Sound):
        def read(self, name, start, stop):
            values = super().read(name, start, stop)
            whole = stop - start == self.infos[name].numel
            return values.reshape(self.infos[name].shape) if whole else values

    class LostTensor(Sound):
        def find_tensors(self):
            yield from list(super().find_tensors())[1:]

    class FlatShapes(Sound):
        def find_tensors(self):
            for stored in super().find_tensors():
                info = TensorInfo(stored.info.name, (stored.info.numel,), stored.info.dtype)
                yield StoredTensor(stored.file, info, stored.offset)

    class Swapped(Sound):
        def read(self, name, start, stop):
            values = super().read(name, start, stop)
            return values.flip(0) if len(values) == self.infos[name].numel else values

    class EagerReader(Sound):
        def __init__(self, location):
            super().__init__(location)
            (location.path / "m.bin").read_bytes()

    class OneHandle(ByHand):
        def __init__(self, location):
            super().__init__(location)
            self.stream = open(self.path, "rb")

    class SharedPosition(ByHand):
        """All threads share one position in the file."""
        def __getstate__(self):
            return {**self.__dict__, "stream": None}
        def __setstate__(self, state):
            self.__dict__.update(state)
            self.stream = open(self.path, "rb", buffering=0)
        def __init__(self, location):
            super().__init__(location)
            self.stream = open(self.path, "rb", buffering=0)
        def read(self, name, start, stop):
            import time
            info = self.infos[name]
            self.stream.seek(self.start + self.described[name][2] + start * info.dtype.itemsize)
            time.sleep(0.001)
            size = (stop - start) * info.dtype.itemsize
            data = bytearray(self.stream.read(size).ljust(size, bytes(1)))  # past the end: zeros
            return numbers(data, info.dtype)

    class NoOrigin(ByHand):
        @property
        def origin(self):
            return None

    class NoDigest(ByHand):
        @property
        def origin(self):
            return Origin(files={"m.bin": {"bytes": self.size}}, stamps=self.own_origin.stamps)

    class SameDigest(ByHand):
        @property
        def origin(self):
            return Origin(files={"m.bin": {"header": "0" * 64}}, stamps=self.own_origin.stamps)

    class NoStamps(ByHand):
        @property
        def origin(self):
            return Origin(files=self.own_origin.files)

    class SizeAsStamp(ByHand):
        """Notice only changes of the size."""
        @property
        def origin(self):
            size = self.size
            class Sized(Origin):
                def check_unchanged(self):
                    from fusion_core.errors import IntegrityError
                    for path in self.stamps:
                        if path.stat().st_size != size:
                            raise IntegrityError(f"{path} changed")
            return Sized(files=self.own_origin.files, stamps=self.own_origin.stamps)

    class Hanging(Sound):
        def find_tensors(self):
            stored = list(super().find_tensors())
            if {tensor.info.name for tensor in stored} != NAMES:
                while True:
                    pass
            return stored

    class Slow(ByHand):
        def __init__(self, location):
            try:
                super().__init__(location)
            except Exception as error:
                for _ in range(0 if hasattr(Slow, "was_slow") else 2 * 10**8):
                    pass
                Slow.was_slow = True
                raise CheckpointError(f"{location.path} is malformed") from error

    class Allocating(Sound):
        def find_tensors(self):
            try:
                return list(super().find_tensors())
            except Exception:
                self.memory = bytearray(b"1") * (300 * 2**20)
                raise

    class Unnamed(ByHand):
        def __init__(self, location):
            try:
                super().__init__(location)
            except Exception as error:
                raise CheckpointError("the file is malformed") from error

    class Padding(ByHand):
        """Read missing values at the end as zeros."""
        def __init__(self, location):
            try:
                super().__init__(location)
            except Exception as error:
                raise CheckpointError(f"{location.path} is malformed") from error

        def read(self, name, start, stop):
            dtype = self.infos[name].dtype
            first = self.start + self.described[name][2] + start * dtype.itemsize
            size = (stop - start) * dtype.itemsize
            data = self.path.read_bytes()[first:][:size]
            return numbers(bytearray(data.ljust(size, b"0")), dtype)

    class Dying(Sound):
        def find_tensors(self):
            stored = list(super().find_tensors())
            if {tensor.info.name for tensor in stored} != NAMES:
                os._exit(3)
            return stored

    NAMES = {"layer.weight", "layer.bias", "layer.scale", "layer.half", "steps"}
'''

TESTS = """
    import json, struct
    import pytest
    from fusion_core import FormatSpec
    from fusion_testing import FormatSuite
    import faulty_formats

    def write(directory, tensors):
        described, content = {}, b""
        for name, tensor in tensors.items():
            described[name] = [str(tensor.dtype), list(tensor.shape), len(content)]
            content += tensor.numpy().tobytes()
        text = json.dumps(described).encode()
        (directory / "m.bin").write_bytes(struct.pack("<Q", len(text)) + text + content)

    def suite(name, files=("m.bin",)):
        spec = FormatSpec(
            name=name.lower(), summary="Planted.", target=f"faulty_formats:{name}", files=files,
        )
        about = {
            "spec": pytest.fixture(lambda self: spec),
            "write": pytest.fixture(lambda self: write),
        }
        globals()[f"Test_{name}"] = type(f"Test_{name}", (FormatSuite,), about)

    for name, value in vars(faulty_formats).items():
        if isinstance(value, type) and value.__module__ == "faulty_formats":
            suite(name)
    faulty_formats.OtherName = faulty_formats.Sound
    suite("OtherName", files=("n.bin",))
"""

DAMAGED = "test_damaged_files_are_refused_soon"
TRUNCATED = "test_a_truncated_file_is_refused"
RANGE = "test_a_range_is_that_part_of_the_tensor"
DESCRIBED = "test_names_shapes_and_dtypes_are_those_of_the_model"
ORIGIN = "test_its_origin_names_files_by_digests"
#: fault -> the check that catches it, and a part of the message
CAUGHT_BY: Mapping[str, tuple[str, str]] = {
    "ForgottenOffset": (RANGE, "expected `read"),
    "WholeTensor": (RANGE, "that range of the whole tensor"),
    "OtherDtype": (RANGE, "layer.half"),
    "InItsShape": (RANGE, "that range of the whole tensor"),
    "Swapped": ("test_tensors_have_their_values", "differ from those written"),
    "LostTensor": (DESCRIBED, "expected `infos` to be"),
    "FlatShapes": (DESCRIBED, r"\(35,\)"),
    "EagerReader": ("test_opening_reads_headers_alone", "opening a model with"),
    "OneHandle": ("test_a_copy_in_another_process_reads_the_same", "cannot be pickled"),
    "SharedPosition": ("test_several_threads_may_read", "SharedPosition|wrong values"),
    "NoOrigin": (ORIGIN, "no origin with files and stamps"),
    "NoDigest": (ORIGIN, "no digest of"),
    "SameDigest": (ORIGIN, "the same digests"),
    "NoStamps": (ORIGIN, "no origin with files and stamps"),
    "SizeAsStamp": ("test_a_file_that_changes_is_noticed", "expected an IntegrityError"),
    "ByHand": (DAMAGED, "got (BrokenPluginError|MemoryError)"),
    "Hanging": (DAMAGED, "took more than 20 seconds"),
    "Slow": (DAMAGED, "took [0-9.]+ seconds"),
    "Allocating": (DAMAGED, "MB of memory"),
    "Dying": (DAMAGED, "ended the process with code 3"),
    "Unnamed": (TRUNCATED, "does not name the file"),
    "Padding": (TRUNCATED, "wrong values were read"),
    "OtherName": ("test_its_models_are_known_by_their_files", "a model with the files m.bin"),
}
NOT_INSTALLED = {
    "test_the_plugin_is_installed",
    "test_the_plugin_says_which_core_it_needs",
    "test_the_package_is_typed",
    "test_listing_it_imports_nothing_heavy",
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Run the check that should catch each fault, and all checks on the sound format."""
    root = tmp_path_factory.mktemp("planted")
    (root / "site").mkdir()
    (root / "site" / "faulty_formats.py").write_text(dedent(FORMATS))
    checks = [f"(Test_{fault} and {check})" for fault, (check, _) in CAUGHT_BY.items()]
    return run_suites(root, TESTS, ["Test_Sound", *checks])


@pytest.mark.thorough
@pytest.mark.parametrize("fault", CAUGHT_BY)
def test_planted_fault_is_caught(planted: dict[str, dict[str, str]], fault: str) -> None:
    check, message = CAUGHT_BY[fault]
    assert re.search(message, planted[fault].get(check, "not caught")), planted[fault]


@pytest.mark.thorough
def test_sound_format_passes(planted: dict[str, dict[str, str]]) -> None:
    assert planted["Sound"].keys() == NOT_INSTALLED


@pytest.mark.thorough
def test_failure_says_what_to_do(planted: dict[str, dict[str, str]]) -> None:
    for fault in CAUGHT_BY:
        for text in planted[fault].values():
            assert re.search(r"\n\nTo fix it: \w", text), text
