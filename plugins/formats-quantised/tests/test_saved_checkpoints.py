"""Checkpoints that the libraries save, against the weights that transformers loads from them.

These tests hold the names of tensors and the configurations against the libraries:
nox -s quantised.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion_core import find_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytestmark = pytest.mark.quantised


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "vocab_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, tie_word_embeddings=False))
    model.bfloat16().save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def load(path: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, device_map="cpu", **options)


def assert_equal(path: Path, expected: Mapping[str, torch.Tensor]) -> None:
    source = find_model(str(path), "model").open()
    assert source.infos.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(source.tensor(name), tensor.to(source.infos[name].dtype)), name


@pytest.mark.parametrize(
    "settings",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"load_in_8bit": True},
    ],
)
def test_bitsandbytes(settings: dict[str, Any], plain: Path, tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig

    load(plain, quantization_config=BitsAndBytesConfig(**settings)).save_pretrained(tmp_path / "q")
    assert_equal(tmp_path / "q", load(tmp_path / "q").dequantize().state_dict())


@pytest.mark.parametrize(
    "preset", ["FP8", "FP8_BLOCK", "W8A8", "W4A16", "W4A16_ASYM", "NVFP4", "MXFP4"]
)
def test_compressed_tensors(preset: str, plain: Path, tmp_path: Path) -> None:
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from transformers import CompressedTensorsConfig

    model = load(plain, dtype=torch.bfloat16)
    scheme = preset_name_to_scheme(preset, ["Linear"])
    groups = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    apply_quantization_config(model, groups)
    for module in model.modules():
        if not hasattr(module, "weight_scale"):
            continue
        module.weight_scale.data.uniform_(0.001, 0.01)
        if preset == "MXFP4":
            module.weight_scale.data.fill_(2**-8)
        if preset == "W4A16_ASYM":
            module.weight_zero_point.data.random_(-8, 8)
        if preset == "NVFP4":
            module.weight_scale.data.uniform_(0.5, 1)
            module.weight_global_scale.data.fill_(100.0)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "q")
    compressor.update_config(tmp_path / "q")
    options = CompressedTensorsConfig(run_compressed=False)
    loaded = load(tmp_path / "q", quantization_config=options, dtype=torch.bfloat16).state_dict()
    extra = ("_scale", "_zero_point", "_shape")
    expected = {name: value for name, value in loaded.items() if not name.endswith(extra)}
    assert_equal(tmp_path / "q", expected)


def test_block_fp8(plain: Path, tmp_path: Path) -> None:
    from transformers import FineGrainedFP8Config

    stored = {}
    for name, weight in load_file(plain / "model.safetensors").items():
        stored[name] = weight
        if name.endswith("proj.weight"):
            blocks = weight.float().view(weight.shape[0] // 64, 64, -1, 64)
            scales = blocks.abs().amax((1, 3)) / 448
            codes = blocks / scales[:, None, :, None]
            stored[name] = codes.view(weight.shape).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scales
    settings = {"quant_method": "fp8", "weight_block_size": [64, 64]}
    _write(tmp_path / "q", plain, stored, {**settings, "modules_to_not_convert": ["lm_head"]})
    options = FineGrainedFP8Config(dequantize=True, weight_block_size=(64, 64))
    assert_equal(tmp_path / "q", load(tmp_path / "q", quantization_config=options).state_dict())


def test_mxfp4_of_gpt_oss(tmp_path: Path) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM, Mxfp4Config

    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32, "vocab_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    model = GptOssForCausalLM(GptOssConfig(**sizes, **heads, **experts)).bfloat16()
    model.save_pretrained(tmp_path / "plain")
    stored = {}
    for name, weight in load_file(tmp_path / "plain" / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            count, inputs, outputs = weight.shape
            shape = (count, outputs, inputs // 32)
            stored[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
            stored[f"{name}_scales"] = torch.randint(110, 125, shape, dtype=torch.uint8)
        else:
            stored[name] = weight
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    _write(tmp_path / "q", tmp_path / "plain", stored, settings)
    options = {"quantization_config": Mxfp4Config(dequantize=True), "dtype": torch.bfloat16}
    assert_equal(tmp_path / "q", load(tmp_path / "q", **options).state_dict())


def _write(
    path: Path, plain: Path, stored: dict[str, torch.Tensor], settings: dict[str, Any]
) -> None:
    path.mkdir()
    save_file(stored, path / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
