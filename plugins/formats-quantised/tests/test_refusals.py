"""Variants without a tested reference, and damaged checkpoints: refused with a clear error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from gguf_models import write_gguf
from references import VALUES, read_reference

from fusion_core import find_model
from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path


def refusal(directory: Path, case: str, **changes: Any) -> str:
    """Write a stored checkpoint with changed settings or tensors and return the error."""
    reference = read_reference(VALUES / f"{case}.safetensors")
    for name, value in changes.items():
        if isinstance(value, torch.Tensor) or value is torch.Tensor:
            full = next(known for known in reference.tensors if known.endswith(name))
            del reference.tensors[full]
            if value is not torch.Tensor:
                reference.tensors[full] = value
        else:
            reference.config[name] = value
    reference.write(directory)
    with pytest.raises(CheckpointError) as caught:
        source = find_model(str(directory), "model").open()
        for name in source.infos:
            source.tensor(name)
    assert caught.value.hint or "JSON" in caught.value.message
    return str(caught.value.message)


def state(**changes: int) -> torch.Tensor:
    """Return a state of bitsandbytes with changed fields, as it is stored."""
    fields = {"shape": [32, 64], "blocksize": 64, "dtype": "bfloat16", "nested_blocksize": 256}
    return torch.tensor([*json.dumps(fields | changes).encode()], dtype=torch.uint8)


@pytest.mark.parametrize(
    ("case", "changes", "says"),
    [
        ("gptq-4", {"checkpoint_format": "marlin"}, "the format 'marlin' is not supported"),
        ("gptq-4", {"format": "gptq_v2"}, "'gptq_v2' and checkpoint_format 'gptq' is not supp"),
        ("awq", {"version": "gemv"}, "the layout 'gemv'"),
        ("awq", {"bits": 8}, "and 8 bits is not supported"),
        ("pack-group", {"format": "marlin-24"}, "the format 'marlin-24' is not supported"),
        ("nvfp4", {"transform_config": {"u": 1}}, "transform_config is not supported"),
        ("pack-group", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        ("pack-group", {"config_groups": {"g": {"weights": 3}}}, "a group of config_groups"),
        ("pack-group", {"config_groups": {}}, "num_bits other than"),
        ("float-channel", {"config_groups": {}}, "no group of config_groups explains"),
        ("float-channel", {"config_groups": [1]}, "the invalid config_groups"),
        ("fp8-blocks", {"weight_scale_inv": torch.ones(3)}, "has shape [3], expected [2, 2]"),
        ("fp8-blocks", {"weight_block_size": [16, 16]}, "expected [2, 4]"),
        ("fp8-blocks", {"weight_block_size": [10**30, 10**30]}, "weight_block_size [1000"),
        ("gptq-4", {"g_idx": torch.Tensor}, "g_idx' is missing"),
        ("gptq-4", {"g_idx": torch.full((64,), 2, dtype=torch.int32)}, "names groups from 2 to 2"),
        ("gptq-4", {"g_idx": torch.full((64,), -1, dtype=torch.int32)}, "groups from -1 to -1"),
        ("gptq-4", {"g_idx": torch.zeros(60, dtype=torch.int32)}, "for 60 inputs"),
        ("gptq-4", {"qzeros": torch.zeros(2, 3, dtype=torch.int32)}, "expected [2, 4]"),
        ("awq", {"scales": torch.zeros(3, 32).half()}, "3 groups, which do not divide 64 inputs"),
        ("awq", {"qzeros": torch.zeros(1, 4)}, "is torch.float32, expected int32"),
        ("nf4", {"absmax": torch.ones(3)}, "has shape [3], expected [32]"),
        ("nf4-nested", {"nested_absmax": torch.ones(2)}, "has shape [2], expected [1]"),
        ("nf4", {"weight": torch.ones(9, 1, dtype=torch.uint8)}, "has 9 bytes for shape [32, 64]"),
        ("nf4", {"__nf4": torch.zeros(9000, dtype=torch.uint8)}, "expected at most 4096"),
        ("nf4", {"__nf4": torch.tensor([*b'{"shape": [1, -2]}'])}, "is torch.int64, expected ui"),
        ("nf4", {"__nf4": torch.tensor([*b"{"], dtype=torch.uint8)}, "malformed JSON"),
        (
            "nf4",
            {"__nf4": torch.tensor([*b'{"shape": [8, true]}'], dtype=torch.uint8)},
            "has an invalid shape",
        ),
        (
            "nf4-nested",
            {"__nf4": state(nested_blocksize=2**40)},
            "nested_blocksize or nested_offset",
        ),
        (
            "nf4-nested",
            {"__nf4": state(nested_offset=10**400)},
            "nested_blocksize or nested_offset",
        ),
        ("int8-rows", {"SCB": torch.ones(31)}, "has shape [31], expected [32]"),
        ("int8-rows", {"weight_format": torch.tensor(1).byte()}, "(the layout col32) is not supp"),
        ("int8-rows", {"weight_format": torch.tensor([3]).byte()}, "3 (the layout col_ampere)"),
        ("int8-rows", {"weight_format": torch.tensor(9).byte()}, "9 (the layout unknown)"),
        ("int8-rows", {"weight_format": torch.zeros(2).byte()}, "expected [] or [1]"),
        ("mxfp4", {"_scales": torch.ones(3, 32, 1, dtype=torch.uint8)}, "expected [3, 32, 2]"),
        ("pack-group", {"weight_shape": torch.tensor([32, 2**40])}, "does not fit"),
        ("pack-group", {"weight_shape": torch.tensor([-1, -1])}, "does not fit"),
    ],
)
def test_what_is_not_known_is_refused(
    case: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    assert says in refusal(tmp_path / "model", case, **changes)


@pytest.mark.parametrize(
    ("case", "dtype", "scales"),
    [
        ("fp8-blocks", torch.float8_e4m3fn, "expected 'm.weight_scale_inv'"),
        ("fp8-blocks", torch.float8_e5m2, "expected 'm.weight_scale_inv'"),
        ("float-tensor", torch.float8_e4m3fn, "expected 'm.weight_scale'"),
        ("int8-channel", torch.int8, "expected 'm.weight_scale'"),
        ("int8-rows", torch.int8, "expected 'm.SCB'"),
        ("nf4", torch.uint8, "expected 'm.weight.quant_state.bitsandbytes__nf4' or "),
    ],
)
def test_a_tensor_without_its_scales_is_named(
    case: str, dtype: torch.dtype, scales: str, tmp_path: Path
) -> None:
    reference = read_reference(VALUES / f"{case}.safetensors")
    reference.tensors["m.weight"] = torch.ones(2, 2).to(dtype)
    reference.write(tmp_path / "model")
    with pytest.raises(CheckpointError) as caught:
        find_model(str(tmp_path / "model"), "model").open()
    assert f"tensor 'm.weight' is {dtype}, ".replace("torch.", "") in caught.value.message
    assert scales in caught.value.message


def test_the_scales_of_autofp8_are_refused_by_name(tmp_path: Path) -> None:
    reference = read_reference(VALUES / "fp8-tensor.safetensors")
    (name,) = reference.expected
    reference.tensors[f"{name}_scale"] = reference.tensors.pop(f"{name}_scale_inv")
    reference.write(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"weight_scale \(the fp8 of AutoFP8\) is not supp"):
        find_model(str(tmp_path / "model"), "model").open()


@pytest.mark.parametrize("case", ["gptq-4", "pack-group"])
def test_a_weight_that_is_stored_twice_is_refused(case: str, tmp_path: Path) -> None:
    reference = read_reference(VALUES / f"{case}.safetensors")
    (name,) = reference.expected
    reference.tensors[name] = torch.ones(3)
    reference.write(tmp_path / "model")
    with pytest.raises(CheckpointError, match="stored both quantised and plain"):
        find_model(str(tmp_path / "model"), "model").open()


@pytest.mark.parametrize("case", ["float-channel", "pack-group"])
def test_a_global_scale_of_other_codes_than_fp4_is_refused(case: str, tmp_path: Path) -> None:
    reference = read_reference(VALUES / f"{case}.safetensors")
    (name,) = reference.expected
    reference.tensors[f"{name}_global_scale"] = torch.ones(1)
    reference.write(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"weight_global_scale of .* is not supported"):
        find_model(str(tmp_path / "model"), "model").open()


def test_a_declaration_without_quantised_tensors_is_refused(tmp_path: Path) -> None:
    for case in ("fp8-blocks", "pack-group", "mxfp4", "nf4", "gptq-4", "awq"):
        reference = read_reference(VALUES / f"{case}.safetensors")
        reference.tensors = {"weight": torch.ones(2, 2)}
        reference.write(tmp_path / "model")
        with pytest.raises(CheckpointError, match=r"expected tensors in .*, found none"):
            find_model(str(tmp_path / "model"), "model").open()


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    reference = read_reference(VALUES / "fp8-blocks.safetensors")
    reference.dtype = "float8"
    reference.write(tmp_path / "model")
    with pytest.raises(CheckpointError, match="has the dtype 'float8', expected bfloat16"):
        find_model(str(tmp_path / "model"), "model").open()


def test_an_unknown_method_is_refused_by_name(tmp_path: Path) -> None:
    from fusion_core import AlignmentPolicy
    from pools_checkpoints import CheckpointsConfig, CheckpointsPool

    reference = read_reference(VALUES / "awq.safetensors")
    reference.config["quant_method"] = "aqlm"
    reference.write(tmp_path / "model")
    pool = CheckpointsPool(CheckpointsConfig(models={"a": str(tmp_path / "model")}))
    with pytest.raises(CheckpointError, match="has a quantization_config of 'aqlm'"):
        pool.aligned(AlignmentPolicy())


def test_gguf_of_another_architecture_or_a_mixture_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", "llama", ["F16"])
    content = (tmp_path / "a.gguf").read_bytes()
    for old, new, says in (
        (b"ffn_up", b"ffn_xx", r"tensor 'blk\.0\.ffn_xx\.weight' of the architecture llama is not"),
        (b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba", "the architecture 'mamba'"),
        (b"general.architecture", b"general.architectxxx", "the architecture None"),
        (b"llama.attention.head_count_kv", b"llama.attention.head_count_xx", None),
        (
            b"llama.attention.head_count\x04",
            b"llama.attention.head_xxxxx\x04",
            "head_count is None",
        ),
    ):
        (tmp_path / "b.gguf").write_bytes(content.replace(old, new))
        if says is not None:
            with pytest.raises(CheckpointError, match=says):
                find_model(str(tmp_path / "b.gguf"), "model").open()


@pytest.mark.parametrize(
    ("changes", "contradicted"),
    [
        ({}, []),
        ({"rope_theta": 1e6}, ["rope.freq_base"]),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 5e5}}, ["rope.freq_base"]),
        ({"num_attention_heads": 16}, ["attention.head_count"]),
        ({"num_key_value_heads": 8}, ["attention.head_count_kv"]),
        ({"model_type": "qwen2"}, ["general.architecture"]),
        ({"model_type": "mistral", "rms_norm_eps": 1e-5}, []),
        ({"rms_norm_eps": 1e-6}, ["attention.layer_norm_rms_epsilon"]),
    ],
)
def test_a_gguf_header_is_compared_with_the_configuration_of_the_base(
    changes: dict[str, Any], contradicted: list[str], tmp_path: Path
) -> None:
    write_gguf(tmp_path / "a.gguf", "llama", ["F16"])
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    config = {"model_type": "llama", **heads, "rms_norm_eps": 1e-5, **changes}
    rows = list(find_model(str(tmp_path / "a.gguf"), "model").open().contradictions(config))
    assert [row.subject for row in rows] == [f"header {field}" for field in contradicted]
    assert [row.is_serious for row in rows] == ["epsilon" not in row.subject for row in rows]


def test_gguf_with_two_tensors_of_one_name_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", "llama", ["F16"])
    content = (tmp_path / "a.gguf").read_bytes()
    # Names of one length, and both of layer 0.
    twin = content.replace(b"blk.1.attn_norm.weight", b"blk.00.ffn_gate.weight")
    (tmp_path / "b.gguf").write_bytes(twin)
    with pytest.raises(CheckpointError, match=r"'blk\.0\.ffn_gate\.weight' and 'blk\.00\.ffn"):
        find_model(str(tmp_path / "b.gguf"), "model").open()


@pytest.mark.parametrize(
    ("kind", "says", "hint"),
    [
        (28, "has the GGUF type F64, which the installed", "Name the model"),
        (999, "has the GGUF type 999; the installed package gguf knows types up to", "Update it"),
    ],
)
def test_gguf_of_a_type_that_is_not_read_names_the_tensor(
    kind: int, says: str, hint: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "a.gguf", "llama", ["F16"])
    content = (tmp_path / "a.gguf").read_bytes()
    end = content.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 2 * 8
    changed = content[:end] + kind.to_bytes(4, "little") + content[end + 4 :]
    (tmp_path / "a.gguf").write_bytes(changed)
    with pytest.raises(CheckpointError) as caught:
        find_model(str(tmp_path / "a.gguf"), "model").open()
    assert f"a.gguf: tensor 'token_embd.weight' {says}" in caught.value.message
    assert (caught.value.hint or "").startswith(hint)


def test_gguf_with_an_unknown_dtype_in_its_configuration_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", "llama", ["F16"])
    (tmp_path / "config.json").write_text('{"dtype": "float64"}')
    with pytest.raises(CheckpointError, match="has the dtype 'float64', expected bfloat16"):
        find_model(str(tmp_path), "model").open()


def test_gguf_shards_are_read_together_or_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m-00001-of-00002.gguf", "llama", ["F16"])
    with pytest.raises(CheckpointError, match="has 1 of 2 GGUF shards"):
        find_model(str(tmp_path), "model").open()
    write_gguf(tmp_path / "other.gguf", "llama", ["F16"])
    with pytest.raises(CheckpointError, match="holds 2 GGUF files"):
        find_model(str(tmp_path), "model").open()


def test_settings_are_those_of_the_file(tmp_path: Path) -> None:
    """A nested configuration counts, as of models with a language part."""
    reference = read_reference(VALUES / "fp8-blocks.safetensors")
    reference.write(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({"text_config": json.loads(path.read_text())}))
    source = find_model(str(tmp_path / "model"), "model").open()
    (name,) = reference.expected
    assert torch.equal(source.tensor(name), reference.expected[name])


@pytest.mark.parametrize("language", ["text_config", "llm_config"])
def test_the_dtype_is_that_of_the_language_part(language: str, tmp_path: Path) -> None:
    reference = read_reference(VALUES / "fp8-blocks.safetensors")
    reference.write(tmp_path / "model")
    nested = {"vision_config": {"dtype": "float32"}, language: {"torch_dtype": "float16"}}
    settings = {"quantization_config": reference.config}
    for config, dtype in ((nested, torch.float16), ({"dtype": "bfloat16"}, torch.bfloat16)):
        content = json.dumps(nested | config | settings)
        (tmp_path / "model" / "config.json").write_text(content)
        source = find_model(str(tmp_path / "model"), "model").open()
        assert {info.dtype for info in source.infos.values()} == {dtype}
