"""The suite of formats: checks on models with known tensors.

`_format_damage.py` has the checks on damaged files.
"""

from __future__ import annotations

import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion_core.errors import IntegrityError
from fusion_core.plugins.formats import LocatedModel, claims
from fusion_core.weights import Cut, Origin, WeightSource, check_unchanged, collect_origins
from fusion_core.weights.reading.location import Location
from fusion_testing._compare import differing_bytes
from fusion_testing._format_damage import DamageChecks
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from fusion_core.contracts.specs import FormatSpec

    #: Writes tensors by name as a model of the format into an empty directory.
    Write = Callable[[Path, Mapping[str, Tensor]], None]
    Open = Callable[[Path], WeightSource]

_DIGEST = re.compile(r"[0-9a-f]{32,}")
#: Bytes that opening a model may read.
_MAX_HEADER = 2**18
_MANY_ROWS = 2**17


class FormatSuite(DamageChecks):
    """Checks that every format must pass.

    Supply two fixtures: `spec`, and `write`, a function that writes tensors by name as a model of
    the format into a directory. Override `tensors` if the format cannot store the default ones. If
    it stores differences from a base, `base` is that base and `tensors` are the differences.
    """

    def test_its_models_are_known_by_their_files(self, spec: FormatSpec, model: Path) -> None:
        """The spec recognises a model of the format by its file names and `config.json`."""
        if claims([spec], Location(model, str(model))) != [True]:
            files = ", ".join(sorted(path.name for path in model.iterdir()))
            fail(
                f"the spec of {spec.name!r} does not recognise a model with the files {files}.",
                "Name one of these files in `files`, and only keys of config.json in "
                "`config_keys`.",
            )

    def test_names_shapes_and_dtypes_are_those_of_the_model(
        self, open_model: Open, model: Path, tensors: Mapping[str, Tensor]
    ) -> None:
        """`infos` has the name, shape and dtype of every tensor."""
        infos = open_model(model).infos
        actual = {name: (info.shape, info.dtype) for name, info in infos.items()}
        expected = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
        if actual != expected:
            fail(
                f"expected `infos` to be {expected}, got {actual}.",
                "Describe every tensor of the model by its name, shape and dtype.",
            )

    def test_tensors_have_their_values(
        self, open_model: Open, model: Path, tensors: Mapping[str, Tensor]
    ) -> None:
        """Whole tensors are read bit by bit, in any order."""
        source = open_model(model)
        for name in [*tensors, *reversed([*tensors])]:
            if differing_bytes({"": source.tensor(name)}, {"": tensors[name]}):
                fail(
                    f"the values of {name!r} differ from those written.",
                    "Return the elements [start, stop) in row-major order.",
                )

    def test_a_range_is_that_part_of_the_tensor(
        self, open_model: Open, model: Path, tensors: Mapping[str, Tensor]
    ) -> None:
        """A range at any offset is flat, in the tensor's dtype, and has the right values."""
        source = open_model(model)
        for name, tensor in tensors.items():
            for start, stop in _spans(tensor, source.cut):
                part = source.read(name, start, stop)
                expected = tensor.reshape(-1)[start:stop]
                if part.shape != expected.shape or differing_bytes({"": part}, {"": expected}):
                    fail(
                        f"expected `read({name!r}, {start}, {stop})` to return that range of the "
                        f"whole tensor as {expected.dtype} of shape {list(expected.shape)}, got "
                        f"{part.dtype} of shape {list(part.shape)} or other values.",
                        "Return the elements [start, stop), flat, in the tensor's dtype.",
                    )

    def test_several_threads_may_read(
        self, open_model: Open, model: Path, tensors: Mapping[str, Tensor]
    ) -> None:
        """Several threads can read the same source at the same time."""
        source, names = open_model(model), [*tensors] * 20
        with ThreadPoolExecutor(4) as executor:
            results = list(executor.map(source.tensor, names))
        for name, tensor in zip(names, results, strict=True):
            if differing_bytes({"": tensor}, {"": tensors[name]}):
                fail(
                    f"{name!r} has wrong values when several threads read.",
                    "Read with os.pread or os.preadv: threads share the position of an open file.",
                )

    def test_opening_reads_headers_alone(
        self, open_model: Open, write: Write, tensors: Mapping[str, Tensor], tmp_path: Path
    ) -> None:
        """Opening a model reads headers only, however large the tensors are."""
        counter = Path("/proc/self/io")
        if not counter.is_file():
            pytest.skip("this system does not count the bytes that a process reads")
        name = next(name for name, tensor in tensors.items() if tensor.dim() > 0)
        rows, *rest = tensors[name].shape
        enlarged = torch.ones(rows * _MANY_ROWS, *rest, dtype=tensors[name].dtype)
        (tmp_path / "large").mkdir()
        write(tmp_path / "large", {**tensors, name: enlarged})
        before = _bytes_read(counter)
        source = open_model(tmp_path / "large")
        count = _bytes_read(counter) - before
        if count > _MAX_HEADER:
            fail(
                f"opening a model with {enlarged.nbytes} bytes of {name!r} read {count} bytes, "
                f"expected at most {_MAX_HEADER}.",
                "Read only headers in the constructor, and values in `read`.",
            )
        if source.infos[name].shape != enlarged.shape:
            fail(
                f"expected {name!r} to have shape {tuple(enlarged.shape)}, got "
                f"{source.infos[name].shape}.",
                "Read shapes from the header.",
            )

    def test_a_copy_in_another_process_reads_the_same(
        self, open_model: Open, model: Path, tensors: Mapping[str, Tensor]
    ) -> None:
        """A pickled source reads the same values: executors send sources to other processes."""
        try:
            copy: WeightSource = pickle.loads(pickle.dumps(open_model(model)))  # noqa: S301
        except Exception as error:  # noqa: BLE001 - pickling can raise any error
            fail(
                f"a source of the format cannot be pickled: {error}",
                "Derive the class from FileSource, or leave open files out in __getstate__.",
            )
        if differing_bytes({n: copy.tensor(n) for n in tensors}, dict(tensors)):
            fail(
                "a pickled copy of a source reads different values.",
                "Open the same files in __setstate__.",
            )

    def test_its_origin_names_files_by_digests(
        self, open_model: Open, write: Write, model: Path, tensors: Mapping[str, Tensor]
    ) -> None:
        """The origin names the model's files with digests, for the provenance of merges."""
        files = _origin_of(open_model(model)).files
        json.dumps({name: dict(details) for name, details in files.items()})
        missing = [name for name in files if not (model / name).is_file()]
        if missing or not files:
            fail(
                f"the origin names {list(files)}, expected file names inside the model.",
                "Name every file by its path relative to the model.",
            )
        for name, details in files.items():
            if not any(_DIGEST.fullmatch(str(value)) for value in details.values()):
                fail(
                    f"the origin has no digest of {name!r}: {dict(details)}.",
                    "Add the SHA-256 of the file's header, as FileSource does.",
                )
        other = model.parent / "other"
        other.mkdir()
        write(other, {name: tensor for name, tensor in tensors.items() if name != min(tensors)})
        if _digests(files) == _digests(_origin_of(open_model(other)).files):
            fail(
                "two models with different tensors have the same digests.",
                "Hash the whole header.",
            )

    def test_a_file_that_changes_is_noticed(self, open_model: Open, model: Path) -> None:
        """The origin notices a file that is written again while a run reads it."""
        names = list(_origin_of(open_model(model)).files)
        for name in names:
            source, content = open_model(model), (model / name).read_bytes()
            check_unchanged(source)
            (model / name).unlink()
            (model / name).write_bytes(content)
            try:
                check_unchanged(source)
            except IntegrityError:
                continue
            fail(
                f"expected an IntegrityError after {name!r} was written again, got none.",
                "Store a stamp of every file in the origin when it is opened, as FileSource does.",
            )

    # --- fixtures -------------------------------------------------------------------------------

    @pytest.fixture
    def write(self) -> Write:
        """Return the function that writes a model of the format. Authors must supply it."""
        return fail(
            f"{type(self).__name__} has no fixture `write`.",
            "Add a fixture that returns a function write(directory, tensors), which writes tensors "
            "by name as a model of the format.",
        )

    @pytest.fixture
    def tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors of the model; at least one must be a matrix."""
        random = torch.Generator().manual_seed(0)
        return {
            "layer.weight": torch.randn(7, 5, generator=random),
            "layer.bias": torch.randn(5, generator=random),
            "layer.scale": torch.tensor(1.5),
            "layer.half": torch.randn(33, generator=random).half(),
            "steps": torch.arange(3),
        }

    @pytest.fixture
    def base(self) -> WeightSource | None:
        """Return the base, for a format that stores differences from one."""
        return None

    @pytest.fixture
    def model(self, write: Write, tensors: Mapping[str, Tensor], tmp_path: Path) -> Path:
        """Write a model of the format."""
        (tmp_path / "model").mkdir()
        write(tmp_path / "model", tensors)
        return tmp_path / "model"

    @pytest.fixture
    def open_model(self, component: Any, base: WeightSource | None) -> Open:  # noqa: ANN401
        """Return the function that opens a model of the format, as a pool does."""
        return lambda path: LocatedModel(Location(path, str(path)), component).open(base)


def _spans(tensor: Tensor, cut: Cut) -> list[tuple[int, int]]:
    """Return ranges of elements that a cut allows, at odd offsets if possible."""
    count = tensor.numel()
    if cut is Cut.TENSOR:
        return [(0, count)]
    step = 1 if cut is Cut.ELEMENT else count // tensor.shape[0] if tensor.dim() > 1 else count
    parts = count // max(step, 1)
    edges = {0, 1, parts // 3, parts // 2 + 1, parts - 1, parts}
    offsets = sorted(edge * step for edge in edges if 0 <= edge <= parts)
    return [(start, stop) for start in offsets for stop in offsets if start <= stop]


def _bytes_read(counter: Path) -> int:
    match = re.search(r"^rchar: (\d+)$", counter.read_text(encoding="ascii"), re.MULTILINE)
    assert match is not None  # noqa: S101 - the kernel defines the format
    return int(match[1])


def _origin_of(source: WeightSource) -> Origin:
    if source.origin is None or not any(origin.stamps for origin in collect_origins(source)):
        fail(
            "a source of the format has no origin with files and stamps.",
            "Derive the class from FileSource, or override `origin`.",
        )
    return source.origin


def _digests(files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    values = (str(value) for details in files.values() for value in details.values())
    return [value for value in values if _DIGEST.fullmatch(value)]
