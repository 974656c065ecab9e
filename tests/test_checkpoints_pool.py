from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fusion_core.checkpoints import CheckpointsPool
from fusion_core.checkpoints_config import CheckpointsConfig
from fusion_core.config import AlignmentPolicy
from fusion_core.errors import CheckpointError, FusionError
from fusion_core.weights import CheckpointSource, StateDictSource

if TYPE_CHECKING:
    from pathlib import Path


def pool(base: Any = None, **models: Any) -> CheckpointsPool:
    return CheckpointsPool(CheckpointsConfig(base=base, models=models))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    return tmp_path


def test_sources_come_in_the_order_of_the_recipe(directory: Path) -> None:
    found = pool(
        str(directory),
        z=str(directory),
        a=nn.Linear(2, 2, bias=False),
        m={"weight": torch.ones(2, 2)},
    )
    assert isinstance(found.base, CheckpointSource)
    assert [type(each) for each in found.experts.values()] == [
        CheckpointSource,
        StateDictSource,
        StateDictSource,
    ]
    assert list(found.experts) == ["z", "a", "m"]
    assert [each.describe() for each in found.experts.values()] == [
        str(directory),
        "a (live)",
        "m (live)",
    ]
    assert found.reference is found.base
    assert found.task_of("z") == "z"
    aligned = found.aligned(AlignmentPolicy())
    assert aligned is not found
    assert list(aligned.experts) == ["z", "a", "m"]


def test_without_a_base_the_first_expert_is_the_reference(directory: Path) -> None:
    found = pool(a=str(directory))
    assert found.base is None
    assert found.reference is found.experts["a"]
    assert found.inputs().keys() == {"a"}


def test_a_missing_checkpoint_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gone does not exist"):
        pool(a=str(tmp_path / "gone"))


def test_inputs_are_identified(directory: Path) -> None:
    found = pool(str(directory), live=nn.Linear(2, 2, bias=False)).inputs()
    assert found["live"] == {"source": "live (live)"}
    assert found["base"]["source"] == str(directory)
    assert found["base"]["files"]["model.safetensors"]["bytes"] > 16
    json.dumps(found)


def test_a_live_model_is_copied_to_build_one() -> None:
    original = nn.Linear(2, 2)
    weights = StateDictSource({"weight": torch.zeros(2, 2), "bias": torch.ones(2)})
    for found in (pool(original, a=original), pool({"weight": torch.ones(1)}, a=original)):
        built = found.build(weights)
        assert built is not original
        assert not built.training
        assert found.parameters(built).keys() == {"weight", "bias"}
        assert built(torch.ones(1, 2)).tolist() == [[1, 1]]
    assert original.weight.abs().sum() > 0


def test_files_alone_build_nothing(directory: Path) -> None:
    with pytest.raises(FusionError, match="without knowing which class"):
        pool(str(directory), a=str(directory)).build(StateDictSource({}))


# --- the files beside the weights ---------------------------------------------------------------


def test_only_known_files_are_copied(directory: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt", "chat_template.jinja", "merges.txt"):
        (directory / name).write_text(name)
    for name in ("modeling_x.py", "pytorch_model.bin", "training_args.bin", ".git", "README.md"):
        (directory / name).write_text("no")
    (directory / "spiece.model").mkdir()
    found = pool(str(directory), a=str(directory)).assets()
    assert found.keys() == {"tokenizer.json", "vocab.txt", "chat_template.jinja", "merges.txt"}
    assert found["vocab.txt"] == directory / "vocab.txt"


def test_a_configuration_loses_what_makes_loaders_run_code(directory: Path) -> None:
    config = {
        "model_type": "toy",
        "auto_map": {"AutoModel": "evil.Model"},
        "trust_remote_code": True,
        "_name_or_path": "/home/somebody/model",
        "_attn_implementation": "evil/kernel",
        "_attn_implementation_internal": "evil/kernel",
        "pad_token_id": -1,
        "rope_theta": 1e6,
        "text_config": {"auto_map": {"x": "y"}, "hidden_size": 8},
        "layers": [{"auto_map": 1, "kind": "a"}],
    }
    (directory / "config.json").write_text(json.dumps(config))
    content = pool(str(directory), a=str(directory)).assets()["config.json"]
    assert isinstance(content, bytes)
    assert json.loads(content) == {
        "model_type": "toy",
        "pad_token_id": -1,
        "rope_theta": 1e6,
        "text_config": {"hidden_size": 8},
        "layers": [{"kind": "a"}],
    }


def test_another_dtype_is_named_in_the_configuration(directory: Path) -> None:
    (directory / "config.json").write_text('{"torch_dtype": "float32", "x": 1}')
    content = pool(str(directory), a=str(directory)).assets(dtype=torch.bfloat16)["config.json"]
    assert isinstance(content, bytes)
    assert json.loads(content) == {"x": 1, "dtype": "bfloat16"}


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 1, "a": 2}'])
def test_a_malformed_configuration_is_refused(directory: Path, content: str) -> None:
    (directory / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        pool(str(directory), a=str(directory)).assets()


def test_a_single_file_and_live_models_have_no_files_beside_them(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("x")
    assert pool(str(directory / "model.safetensors"), a=str(directory)).assets() == {}
    assert pool(nn.Linear(1, 1), a=nn.Linear(1, 1)).assets() == {}
    assert pool(a=str(directory)).assets().keys() == {"tokenizer.json"}
