"""The suite of formats: values, ranges and names of models that were written on purpose.

Checks on damaged files are in `_format_damage.py`.
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

    #: Writes tensors as a model of the format into an empty directory.
    Write = Callable[[Path, Mapping[str, Tensor]], None]
    Open = Callable[[Path], WeightSource]

_DIGEST = re.compile(r"[0-9a-f]{32,}")
#: Bytes that may be read to open a model, in addition to those of its smaller files.
_HEADERS = 2**18
_MANY_ROWS = 2**17


class FormatSuite(DamageChecks):
    """What every format keeps.

    Needs two fixtures: `spec`, and `write`, which returns a function that writes tensors by name as
    a model of the format into a directory. Override `tensors` if a format holds others than the
    usual ones. For differences from a base, `base` is that base, and `tensors` are the differences.
    """

    def test_its_models_are_known_by_their_files(self, spec: FormatSpec, model: Path) -> None:
        """The names, and keys of `config.json`, in the spec are those of a model of the format."""
        if not claims(spec, Location(model, str(model))):
            files = ", ".join(sorted(path.name for path in model.iterdir()))
            fail(
                f"the spec of {spec.name!r} does not say that a model with {files} is one.",
                "Name one of these in `files`, and in `config_keys` only keys of config.json.",
            )

    def test_names_shapes_and_dtypes_are_those_of_the_model(
        self, open_model: Open, model: Path, tensors: Mapping[str, Tensor]
    ) -> None:
        """Every tensor is there, as it was written."""
        found = {name: (i.shape, i.dtype) for name, i in open_model(model).infos.items()}
        expected = {name: (tuple(each.shape), each.dtype) for name, each in tensors.items()}
        if found != expected:
            fail(
                f"the model has {expected}, and `infos` says {found}.",
                "Describe every tensor by its own name, shape and dtype.",
            )

    def test_tensors_have_their_values(
        self, open_model: Open, model: Path, tensors: Mapping[str, Tensor]
    ) -> None:
        """A whole tensor is read to the bit, also after others."""
        source = open_model(model)
        for name in [*tensors, *reversed([*tensors])]:
            if differing_bytes({"": source.tensor(name)}, {"": tensors[name]}):
                fail(
                    f"{name!r} is not read as it was written.",
                    "Return the elements [start, stop) in row-major order.",
                )

    def test_a_range_is_that_part_of_the_tensor(
        self, open_model: Open, model: Path, tensors: Mapping[str, Tensor]
    ) -> None:
        """Ranges at any offset, empty ones too, are flat, in the tensor's dtype, and that part."""
        source = open_model(model)
        for name, tensor in tensors.items():
            for start, stop in _spans(tensor, source.cut):
                part = source.read(name, start, stop)
                expected = tensor.reshape(-1)[start:stop]
                if part.shape != expected.shape or differing_bytes({"": part}, {"": expected}):
                    fail(
                        f"the elements from {start} to {stop} of {name!r} are not those of the "
                        "whole tensor.",
                        "Return the elements [start, stop), flat, in the tensor's own dtype.",
                    )

    def test_several_threads_may_read(
        self, open_model: Open, model: Path, tensors: Mapping[str, Tensor]
    ) -> None:
        """Merges read the same source from all cores."""
        source, names = open_model(model), [*tensors] * 20
        with ThreadPoolExecutor(4) as executor:
            found = list(executor.map(source.tensor, names))
        for name, tensor in zip(names, found, strict=True):
            if differing_bytes({"": tensor}, {"": tensors[name]}):
                fail(
                    f"{name!r} has other values when several threads read.",
                    "Read with os.pread or os.preadv, which share no place in the file.",
                )

    def test_opening_reads_headers_alone(
        self, open_model: Open, write: Write, tensors: Mapping[str, Tensor], tmp_path: Path
    ) -> None:
        """Planning a run reads no more than headers, however large the tensors are."""
        counter = Path("/proc/self/io")
        if not counter.is_file():
            pytest.skip("this system does not count what a process reads")
        name = next(name for name, tensor in tensors.items() if tensor.dim() > 0)
        rows, *rest = tensors[name].shape
        enlarged = torch.ones(rows * _MANY_ROWS, *rest, dtype=tensors[name].dtype)
        (tmp_path / "large").mkdir()
        write(tmp_path / "large", {**tensors, name: enlarged})
        before = _bytes_read(counter)
        source = open_model(tmp_path / "large")
        count = _bytes_read(counter) - before
        if count > _HEADERS:
            fail(
                f"opening a model with {enlarged.nbytes} bytes of {name!r} read {count} bytes.",
                "Read what describes the tensors, and the numbers in `read` alone.",
            )
        if source.infos[name].shape != enlarged.shape:
            fail(f"{name!r} is {source.infos[name].shape}.", "Take shapes from the header.")

    def test_a_copy_in_another_process_reads_the_same(
        self, open_model: Open, model: Path, tensors: Mapping[str, Tensor]
    ) -> None:
        """Executors send sources to workers, which open the files themselves."""
        try:
            copy: WeightSource = pickle.loads(pickle.dumps(open_model(model)))  # noqa: S301 - its own
        except Exception as error:  # noqa: BLE001 - whatever objects raise that cannot be pickled
            fail(
                f"its sources cannot be sent to other processes: {error}",
                "Derive the class from FileSource, or leave open files out by __getstate__.",
            )
        if differing_bytes({n: copy.tensor(n) for n in tensors}, dict(tensors)):
            fail("a copy reads other values.", "Open the same files in __setstate__.")

    def test_its_origin_names_files_by_digests(
        self, open_model: Open, write: Write, model: Path, tensors: Mapping[str, Tensor]
    ) -> None:
        """The provenance of a merge tells from which files it was made."""
        files = _own_origin(open_model(model)).files
        json.dumps({name: dict(about) for name, about in files.items()})
        missing = [name for name in files if not (model / name).is_file()]
        if missing or not files:
            fail(f"its origin names {list(files)}.", "Name the files by their names in the model.")
        for name, about in files.items():
            if not any(_DIGEST.fullmatch(str(value)) for value in about.values()):
                fail(
                    f"its origin has no digest of {name!r}: {dict(about)}.",
                    "Give the SHA-256 of its header, as FileSource does.",
                )
        other = model.parent / "other"
        other.mkdir()
        write(other, {name: each for name, each in tensors.items() if name != min(tensors)})
        if _digests(files) == _digests(_own_origin(open_model(other)).files):
            fail("a model with other tensors has the same digests.", "Hash the whole header.")

    def test_a_file_that_changes_is_noticed(self, open_model: Open, model: Path) -> None:
        """A run whose inputs changed between its plan and its end is not committed."""
        names = list(_own_origin(open_model(model)).files)
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
                f"nobody notices that {name!r} was written again.",
                "Give the origin a stamp of every file when it is opened, as FileSource does.",
            )

    # --- fixtures -------------------------------------------------------------------------------

    @pytest.fixture
    def write(self) -> Write:
        """Return what writes tensors as a model of the format: an author must supply it."""
        return fail(
            f"{type(self).__name__} has no fixture `write`.",
            "Add one that returns a function: it writes tensors by name into a directory.",
        )

    @pytest.fixture
    def tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors that the model is written with, at least one of them a matrix."""
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
        """Return the base of a format of differences."""
        return None

    @pytest.fixture
    def model(self, write: Write, tensors: Mapping[str, Tensor], tmp_path: Path) -> Path:
        """Write a model of the format."""
        (tmp_path / "model").mkdir()
        write(tmp_path / "model", tensors)
        return tmp_path / "model"

    @pytest.fixture
    def open_model(self, component: Any, base: WeightSource | None) -> Open:  # noqa: ANN401
        """Return what opens a model of the format, as a pool does."""
        return lambda path: LocatedModel(Location(path, str(path)), component).open(base)


def _spans(tensor: Tensor, cut: Cut) -> list[tuple[int, int]]:
    """Return ranges of elements that a cut allows, at odd offsets where it allows them."""
    count = tensor.numel()
    if cut is Cut.TENSOR:
        return [(0, count)]
    step = 1 if cut is Cut.ELEMENT else count // tensor.shape[0] if tensor.dim() > 1 else count
    parts = count // max(step, 1)
    edges = {0, 1, parts // 3, parts // 2 + 1, parts - 1, parts}
    places = sorted(edge * step for edge in edges if 0 <= edge <= parts)
    return [(start, stop) for start in places for stop in places if start <= stop]


def _bytes_read(counter: Path) -> int:
    counted = re.search(r"^rchar: (\d+)$", counter.read_text(encoding="ascii"), re.MULTILINE)
    assert counted is not None  # noqa: S101 - the kernel's own format
    return int(counted[1])


def _own_origin(source: WeightSource) -> Origin:
    if source.origin is None or not any(origin.stamps for origin in collect_origins(source)):
        fail(
            "its sources have no origin with files.",
            "Derive the class from FileSource, or override `origin`.",
        )
    return source.origin


def _digests(files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    values = (str(value) for about in files.values() for value in about.values())
    return [value for value in values if _DIGEST.fullmatch(value)]
