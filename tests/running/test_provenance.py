from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from blake3 import blake3
from safetensors.torch import save_file

from fusion_core.errors import CheckpointError
from fusion_core.planning.run_plan import count_tensors
from fusion_core.plugins.manager import load_plugins
from fusion_core.recipe.config import AlignmentPolicy
from fusion_core.running import _provenance as provenance
from fusion_core.weights import (
    CheckpointSource,
    StateDictSource,
    materialise,
    source,
    stage_output,
)
from fusion_core.weights.writing.digest import bytes_digest, tensors_digest
from fusion_core.weights.writing.provenance import (
    Evaluation,
    Input,
    Outputs,
    Provenance,
    RunDetails,
    has_valid_checksum,
    parse_provenance,
    read_provenance,
    record_evaluation,
)
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

    from conftest import Site
    from fusion_core.weights import TensorInfo, WeightSource

pytestmark = pytest.mark.plugins

STATE = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(3), "e": torch.zeros(0, 2)}


def tensor_digest(tensors: WeightSource) -> str:
    """Digest a source's tensors, a range at a time, as the writer does those of an output."""

    def chunks(info: TensorInfo) -> Iterator[memoryview]:
        for start, stop in tensors.cut.ranges(info):
            values = tensors.read(info.name, start, stop).contiguous()
            yield source.view_bytes(values)

    infos = tensors.infos.items()
    return tensors_digest({name: (info, bytes_digest(chunks(info))) for name, info in infos})


def test_tensors_digest_covers_names_dtypes_shapes_and_bytes() -> None:
    def of_bytes(data: bytes) -> str:
        return blake3(data).hexdigest()

    lines = (
        f"a I64 [] {of_bytes((3).to_bytes(8, 'little'))}\n"
        f"b F32 [2,3] {of_bytes(bytes(STATE['b'].view(torch.uint8).flatten().tolist()))}\n"
        f"e F32 [0,2] {of_bytes(b'')}\n"
    )
    assert tensor_digest(StateDictSource(STATE)) == of_bytes(lines.encode())


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.tensor(4)},
        {"a": torch.tensor(3, dtype=torch.int32)},
        {"b": STATE["b"].reshape(3, 2)},
        {"b": STATE["b"].flatten()},
        {"c": torch.tensor(3)},
        {"e": torch.zeros(2, 0)},
    ],
)
def test_every_change_of_a_tensor_changes_the_digest(change: dict[str, torch.Tensor]) -> None:
    one = tensor_digest(StateDictSource(STATE))
    assert one != tensor_digest(StateDictSource({**STATE, **change}))


def test_digest_is_independent_of_order_blocks_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tensor_digest(StateDictSource(STATE))
    assert tensor_digest(StateDictSource(dict(reversed(STATE.items())))) == one
    save_file(STATE, tmp_path / "model.safetensors")
    assert tensor_digest(CheckpointSource(tmp_path)) == one
    monkeypatch.setattr(source, "BLOCK", 2)
    assert tensor_digest(StateDictSource(STATE)) == one


@pytest.fixture(params=[1, 10**9])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a written directory with many shards, or with one."""
    with stage_output(tmp_path / "out") as staging:
        materialise(StateDictSource(STATE), staging, shard_size=request.param)
        staging.add("config.json", b"{}")
        parts = {"versions": {"fusion-core": "0.1.0"}, "device": "cpu"}
        statement = provenance.build_statement(staging, parts, {"seconds": 2})
        staging.add("provenance.json", statement)
        staging.commit(overwrite=False)
    return tmp_path / "out"


def test_every_output_file_is_hashed(output: Path) -> None:
    written = {path.name: path.read_bytes() for path in output.iterdir()}
    statement = json.loads(written.pop("provenance.json"))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    subjects = {entry["name"]: entry for entry in statement["subject"]}
    assert list(subjects) == sorted(written)
    for name, content in written.items():
        digest = {"sha256": hashlib.sha256(content).hexdigest()}
        if name.endswith(".safetensors"):
            header = 8 + int.from_bytes(content[:8], "little")
            spans = json.loads(content[8:header])
            del spans["__metadata__"]
            offsets = [span["data_offsets"] for span in spans.values()]
            data = [content[header + start : header + stop] for start, stop in offsets]
            tensors = b"".join(blake3(part).digest() for part in data)
            digest = {"shardBlake3": blake3(content[:header] + tensors).hexdigest()}
        assert subjects[name]["digest"] == digest
        assert subjects[name]["annotations"] == {"bytes": len(content)}
    recorded = read_provenance(output)
    assert recorded.outputs.tensors_blake3 == tensor_digest(StateDictSource(STATE))
    names = [name for tensors in recorded.outputs.tensors.values() for name in tensors]
    assert names == list(STATE)


def test_checksum_covers_every_byte(output: Path) -> None:
    text = (output / "provenance.json").read_bytes()
    assert has_valid_checksum(text)
    for position in range(0, len(text), 7):
        changed = bytearray(text)
        changed[position] ^= 1 << position % 8
        assert not has_valid_checksum(bytes(changed))


def test_an_evaluation_is_recorded_unless_the_file_is_damaged(output: Path) -> None:
    text = (output / "provenance.json").read_bytes()
    evaluation = Evaluation(tasks=["latin"], files={"report.json": "0" * 64})
    measured = record_evaluation(text, evaluation)
    assert has_valid_checksum(measured)
    assert parse_provenance(measured, path="").run.evaluation == evaluation
    damaged = text.replace(b"0.1.0", b"0.1.1")
    assert record_evaluation(damaged, evaluation) == damaged


def test_provenance_of_an_earlier_version_is_read() -> None:
    files = {"config.json": {"bytes": 2, "sha256": "1" * 64}}
    content = {
        "schema": 1,
        "versions": {"fusion-core": "0.1.0"},
        "inputs": {"base": {"source": "base"}, "expert": [{"a": {"bytes": 3}}, {"b": {}}]},
        "outputs": {
            "files": {**files, "model.safetensors": {"bytes": 9, "header_sha256": "2" * 64}},
            "tensors_blake3": "3" * 64,
        },
        "timings": {"seconds": 1.5},
    }
    read = parse_provenance(json.dumps(content).encode(), path="")
    assert read.schema_version == 1
    assert read.subject["config.json"].digest == {"sha256": "1" * 64}
    assert read.subject["model.safetensors"].digest == {"headerSha256": "2" * 64}
    assert read.outputs.tensors_blake3 == "3" * 64
    assert (read.size, read.run.seconds) == (11, 1.5)
    assert list(read.inputs["expert"].files) == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"predicateType": "urn:fusion-core:provenance:3"}, "got 'urn:fusion-core:provenance:3'"),
        ({"subject": [{"name": "a", "digest": {}}] * 2}, "subject: a name is repeated"),
        ({"subject": [{"name": "a"}]}, "'digest'"),
        ({"predicate": {"versions": {}}}, "missing fusion-core"),
    ],
)
def test_another_statement_is_refused(output: Path, change: dict[str, Any], problem: str) -> None:
    statement = json.loads((output / "provenance.json").read_text())
    with pytest.raises(CheckpointError, match=problem):
        parse_provenance(json.dumps({**statement, **change}).encode(), path="x")


@pytest.mark.parametrize(
    ("title", "model", "elsewhere"),
    [
        ("Predicate", Provenance, {"schema_version", "subject"}),
        ("Inputs", Input, set()),
        ("Outputs", Outputs, set()),
        ("Run", RunDetails, set()),
    ],
)
def test_the_page_describes_every_field(
    title: str, model: type[BaseModel], elsewhere: set[str]
) -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "provenance.md"
    section = re.split(rf"^##+ {title}$", page.read_text(), flags=re.MULTILINE)[1]
    described = re.findall(r"^\| `(\w+)` \|", section.partition("\n#")[0], re.MULTILINE)
    assert set(described) == model.model_fields.keys() - elsewhere


def test_every_tensor_is_counted() -> None:
    expert = {**STATE, "head": torch.ones(1), "other": torch.ones(1)}
    pool = CheckpointsPool(CheckpointsConfig(base=STATE, models={"x": expert, "y": expert}))
    aligned = pool.aligned(AlignmentPolicy(extra="drop"))
    counts = count_tensors(aligned, StateDictSource(STATE))
    assert counts == {"merged": 2, "copied": 1, "dropped": 2}


def test_environment_names_versions_and_used_plugins() -> None:
    environment = provenance.describe_environment(
        {"fusion-core", "fusion-ties"}, load_plugins().plugins, torch.device("cpu")
    )
    assert environment["versions"].keys() == {"fusion-core", "numpy", "python", "torch"}
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["plugins"].keys() == {"fusion-core", "fusion-ties", "fusion-thresholds"}
    assert environment["device"] == "cpu"
    json.dumps(environment)


def test_environment_names_libraries_of_plugins(site: Site) -> None:
    core = "fusion-core>=0.1"
    site.install("line-base", "", version="0.3", requires=(core,), entry_points={})
    site.install("line-tools", "", version="0.2", requires=(core, "line_base"), entry_points={})
    site.install("other", "", version="5.1", entry_points={})
    needs = (core, "line-tools>=0.1", "torch", "pydantic>=2", "other>=5", "gone; extra == 'more'")
    site.install("line-method", "", requires=needs)
    environment = provenance.describe_environment(
        {"line-method"}, load_plugins().plugins, torch.device("cpu")
    )
    assert environment["plugins"] == {"line-base": "0.3", "line-method": "1.0", "line-tools": "0.2"}
    assert environment["versions"].keys() == {"fusion-core", "python", "torch", "other"}
    assert environment["versions"]["other"] == "5.1"
    environment = provenance.describe_environment(
        {"pools-mini"}, load_plugins().plugins, torch.device("cpu")
    )
    libraries = {"fusion-adapting", "pools-checkpoints"}
    assert environment["plugins"].keys() == {*libraries, "pools-clip", "pools-mini"}
