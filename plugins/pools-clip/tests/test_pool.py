"""Vision towers under the hub's names, their live models, and outputs for transformers."""

from __future__ import annotations

import json
import pickle
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, CLIPVisionModel

from fusion_core import AlignmentPolicy, run_fusion
from fusion_core.errors import AlignmentError, CheckpointError
from fusion_core.weights import CheckpointSource, StateDictSource
from fusion_testing import Mean
from pools_clip.config import ClipConfig
from pools_clip.pool import ClipPool

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import CLIPModel

Edit = "Callable[[Path, Mapping[str, Any]], None]"
PREFIX = "vision_model."


@pytest.fixture
def pool(base: Path, experts: dict[str, str]) -> ClipPool:
    return ClipPool(ClipConfig(base=str(base), models=experts))


@pytest.fixture
def copy(experts: dict[str, str], tmp_path: Path) -> Path:
    """A copy of an expert that a test can damage."""
    return shutil.copytree(experts["hub"], tmp_path / "copy")


def open_with(base: Path, expert: Path | str) -> ClipPool:
    return ClipPool(ClipConfig(base=str(base), models={"x": str(expert)}))


def pixels(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_every_source_has_the_names_of_the_hub(pool: ClipPool, whole: CLIPModel) -> None:
    expected = {PREFIX + name for name, _ in whole.vision_model.named_parameters()}
    for source in (pool.base, *pool.experts.values()):
        assert source.infos.keys() == expected


def test_both_forms_of_names_give_the_same_values(pool: ClipPool, experts: dict[str, str]) -> None:
    for name, directory in experts.items():
        for key, tensor in load_file(f"{directory}/model.safetensors").items():
            prefixed = PREFIX + key.removeprefix(PREFIX)
            assert torch.equal(pool.experts[name].tensor(prefixed), tensor)


def test_position_ids_of_old_files_are_left_out(base: Path, copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    ids = {f"{PREFIX}embeddings.position_ids": torch.arange(5)[None]}
    save_file(tensors | ids, copy / "model.safetensors")
    assert open_with(base, copy).experts["x"].infos.keys() == tensors.keys()


def test_a_built_model_matches_the_checkpoint(pool: ClipPool, whole: CLIPModel) -> None:
    built = pool.build(pool.base)
    with torch.no_grad():
        expected = whole.vision_model(pixels()).pooler_output
        torch.testing.assert_close(built(pixels()).pooler_output, expected)
    assert not any(module.training for module in built.modules())


def test_a_whole_clip_model_is_built_as_its_tower(pool: ClipPool, base: Path) -> None:
    built, expected = pool.build(CheckpointSource(base)), pool.build(pool.base)
    for name, value in expected.state_dict().items():
        assert torch.equal(built.state_dict()[name], value)


def test_building_gives_fp32_and_keeps_the_random_state(pool: ClipPool) -> None:
    half = StateDictSource({name: pool.base.tensor(name).half() for name in pool.base.infos})
    before = torch.get_rng_state()
    built = pool.build(half)
    assert torch.equal(torch.get_rng_state(), before)
    assert {value.dtype for value in built.parameters()} == {torch.float32}


def test_parameters_are_live_and_named_as_the_sources(pool: ClipPool) -> None:
    built = pool.build(pool.base)
    parameters = pool.parameters(built)
    assert parameters.keys() == pool.base.infos.keys()
    built(pixels()).pooler_output.square().sum().backward()
    for name, value in parameters.items():
        assert value.grad is not None, name
        assert torch.equal(value.detach(), pool.base.tensor(name))


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_building_is_strict(pool: ClipPool, change: str) -> None:
    tensors = {name: pool.base.tensor(name) for name in pool.base.infos}
    first = next(iter(tensors))
    if change == "missing":
        del tensors[first]
    else:
        tensors[first if change == "shape" else f"{PREFIX}more"] = torch.zeros(2, 2)
    with pytest.raises(AlignmentError, match="spoilt does not fit"):
        pool.build(StateDictSource(tensors, label="spoilt"))


def test_towers_can_be_pickled(pool: ClipPool) -> None:
    tower = pool.experts["hub"]
    clone = pickle.loads(pickle.dumps(tower))
    name = next(iter(tower.infos))
    assert torch.equal(clone.tensor(name), tower.tensor(name))


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_a_merge_loads_in_transformers(
    base: Path, experts: dict[str, str], tmp_path: Path, dtype: str | None
) -> None:
    result = run_fusion(
        algorithm=Mean(),
        model_pool={"name": "clip", "base": str(base), "models": experts},
        output={"path": str(tmp_path / "merged"), "dtype": dtype},
    )
    loaded, info = CLIPVisionModel.from_pretrained(result.path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.dtype == getattr(torch, dtype or "float32")
    merged = result.model.state_dict()
    assert merged.keys() == loaded.state_dict().keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value.float(), merged[name])
    processor = AutoImageProcessor.from_pretrained(result.path)
    assert processor.size["shortest_edge"] == 8


def test_the_provenance_names_the_files_of_the_towers(pool: ClipPool) -> None:
    for identity in pool.inputs().values():
        assert identity["files"].keys() == {"model.safetensors"}


def test_assets_describe_a_vision_model_and_select_no_code(
    base: Path, experts: dict[str, str], tmp_path: Path, edited: Edit
) -> None:
    directory = shutil.copytree(base, tmp_path / "evil")
    edited(directory, {"auto_map": {"AutoModel": "evil.Model"}, "attn_implementation": "evil"})
    vision = json.loads((directory / "config.json").read_text())["vision_config"]
    edited(directory, {"vision_config": {**vision, "_attn_implementation_internal": "evil/evil"}})
    settings = directory / "preprocessor_config.json"
    content = {**json.loads(settings.read_text()), "auto_map": {"AutoImageProcessor": "evil.P"}}
    settings.write_text(json.dumps(content))
    pool = ClipPool(ClipConfig(base=str(directory), models=experts))
    assert set(pool.assets()) == {"config.json", "preprocessor_config.json"}
    config = json.loads(pool.assets(dtype=torch.bfloat16)["config.json"])
    assert config["architectures"] == ["CLIPVisionModel"]
    assert config["model_type"] == "clip_vision_model"
    assert config["dtype"] == "bfloat16"
    assert not any(b"evil" in content for content in pool.assets().values())
    assert pool.build(pool.base).config._attn_implementation == "eager"  # noqa: SLF001


def test_different_preprocessors_are_reported(base: Path, copy: Path) -> None:
    shutil.copy(base / "preprocessor_config.json", copy)
    settings = copy / "preprocessor_config.json"
    content = {**json.loads(settings.read_text()), "image_mean": [0.0, 0.0, 0.0]}
    settings.write_text(json.dumps(content))
    pool = ClipPool(ClipConfig(base=str(base), models={"x": str(copy)}))
    (text,) = pool.aligned(AlignmentPolicy()).warnings
    assert text.startswith("x: preprocessor_config.json image_mean: [0.0, 0.0, 0.0], the base's is")


def test_a_base_needs_no_text_tower(experts: dict[str, str]) -> None:
    pool = ClipPool(ClipConfig(base=experts["hub"], models={"x": experts["memory"]}))
    assert json.loads(pool.assets()["config.json"])["hidden_size"] == 16
    assert "preprocessor_config.json" not in pool.assets()


def test_a_missing_directory_is_named_with_its_option(base: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"model_pool\.models\.x: expected a directory: nowhere"
    ):
        open_with(base, "nowhere")


def test_another_kind_of_model_is_refused(base: Path, copy: Path, edited: Edit) -> None:
    edited(copy, {"model_type": "siglip_vision_model"})
    with pytest.raises(CheckpointError, match="siglip"):
        open_with(base, copy)


def test_a_directory_without_configuration_is_refused(base: Path, copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"missing config\.json"):
        open_with(base, copy)


def test_a_checkpoint_without_vision_tensors_is_refused(base: Path, copy: Path) -> None:
    save_file({"text_model.x": torch.zeros(2)}, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match="no CLIP vision tower"):
        open_with(base, copy)


@pytest.mark.parametrize(("field", "value"), [("hidden_act", "gelu"), ("num_attention_heads", 4)])
def test_a_difference_without_effect_on_shapes_is_refused(
    base: Path, copy: Path, edited: Edit, field: str, value: Any
) -> None:
    edited(copy, {field: value})
    with pytest.raises(AlignmentError, match=f"conflicting {field}: expert 'x' has"):
        open_with(base, copy)


def test_an_invalid_configuration_is_refused(base: Path, copy: Path, edited: Edit) -> None:
    edited(copy, {"num_attention_heads": 3})
    with pytest.raises(CheckpointError, match="invalid configuration"):
        open_with(base, copy)


def test_other_shapes_are_found_by_alignment(base: Path, copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors[f"{PREFIX}post_layernorm.bias"] = torch.zeros(9)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(AlignmentError, match=r"post_layernorm\.bias"):
        open_with(base, copy).aligned(AlignmentPolicy())
