"""Quantised checkpoints in the forms that are about: refused by name, with the remedy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_core.errors import CheckpointError
from fusion_core.recipe.config import AlignmentPolicy
from fusion_core.weights import CheckpointSource
from fusion_core.weights.reading._unsupported import unsupported_kind
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from pathlib import Path

    from hub_server import HubServer

F32, F16, I64, I32, I8, U8 = (
    torch.float32, torch.float16, torch.int64, torch.int32, torch.int8, torch.uint8
)  # fmt: skip
FULL = {"h.0.q.weight": torch.zeros(8, 8), "norm.weight": torch.zeros(8)}

FORMS: dict[str, dict[str, tuple[tuple[int, ...], torch.dtype]]] = {
    "GPTQ": {"q.qweight": ((1, 8), I32), "q.scales": ((1, 8), F16), "q.g_idx": ((8,), I32)},
    "AWQ": {"q.qweight": ((8, 1), I32), "q.qzeros": ((1, 1), I32), "q.scales": ((1, 8), F16)},
    "bitsandbytes 8 bits": {"q.weight": ((8, 8), I8), "q.SCB": ((8,), F32)},
    "bitsandbytes 4 bits, stored as floats": {
        "q.weight": ((32, 1), F16),
        "q.weight.absmax": ((1,), F32),
        "q.weight.quant_state.bitsandbytes__nf4": ((90,), U8),
    },
    "fp8": {"q.weight": ((8, 8), torch.float8_e4m3fn)},
    "fp8 of two kinds": {"q": ((8,), torch.float8_e5m2)},
    "scales beside floats": {"q.weight": ((8, 8), F16), "q.weight_scale_inv": ((1, 1), F32)},
    "compressed-tensors": {"q.weight_packed": ((8, 1), I32), "q.weight_scale": ((8, 1), F16)},
    "MXFP4": {"e.proj_blocks": ((2, 8, 1, 16), U8), "e.proj_scales": ((2, 8, 1), U8)},
    "AQLM": {"q.codes": ((8, 8, 1), torch.int16), "q.codebooks": ((1, 2, 1, 8), F16)},
    "HQQ": {"q.W_q": ((8, 8), U8), "q.scale": ((1, 8), F16)},
    "unknown": {"a": ((300,), F32), "q.stuff": ((16, 64), I8)},
}
BUFFERS: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "embeddings.position_ids": ((1, 512), I64),
    "embeddings.token_type_ids": ((1, 512), I64),
    "bn.num_batches_tracked": ((), I64),
    "attn.relative_position_index": ((49, 49), I64),
    "attn.bias": ((1, 1, 32, 32), U8),
    "attn.causal_mask": ((1, 1, 32, 32), torch.bool),
    "anything": ((64, 64), torch.bool),
}


def tensors(form: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in form.items()}


def model(
    path: Path, weights: dict[str, torch.Tensor], config: dict[str, Any] | None = None
) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "toy", **(config or {})}))
    return path


def align(**models: Any) -> None:
    base = models.pop("base", None)
    CheckpointsPool(CheckpointsConfig(base=base, models=models)).aligned(AlignmentPolicy())


def align_and_fail(**models: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        align(**models)
    assert caught.value.exit_code == 4
    assert "dequantise" in (caught.value.hint or "")
    return caught.value


@pytest.mark.parametrize("who", ["base", "a"])
@pytest.mark.parametrize("form", FORMS)
def test_every_format_is_recognised_by_its_tensors(tmp_path: Path, form: str, who: str) -> None:
    paths = {"base": model(tmp_path / "base", FULL), "a": model(tmp_path / "a", FULL)}
    model(paths[who], tensors(FORMS[form]))
    assert align_and_fail(**paths).message.startswith(f"{who} ({paths[who]}) is quantised")
    align_and_fail(**{**paths, who: paths[who] / "model.safetensors"})
    align_and_fail(**{**paths, who: tensors(FORMS[form])})


@pytest.mark.parametrize("scale", [None, "q.qscale_weight", "q.scale", "q.weight.scale", "k.scale"])
def test_weights_without_scales_were_only_cast(tmp_path: Path, scale: str | None) -> None:
    weights = tensors(FORMS["fp8"]) | ({} if scale is None else {scale: torch.ones(())})
    error = align_and_fail(fp8=model(tmp_path / "fp8", weights))
    assert ("only cast" in (error.hint or "")) == (scale in (None, "k.scale"))


def test_all_quantised_models_are_named_at_once(tmp_path: Path) -> None:
    packed = model(tmp_path, tensors(FORMS["GPTQ"]), {"_name_or_path": "org/original"})
    error = align_and_fail(base=packed, a=packed, b=packed)
    assert [line.split()[0] for line in error.message.splitlines()] == ["base", "a", "b"]
    assert "org/original" in (error.hint or "")


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "aqlm"}},
        {"compression_config": {"format": "dense"}},
        {"text_config": {"quantization_config": {"load_in_4bit": True}}},
    ],
)
def test_a_configuration_that_declares_quantisation_is_refused(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    base, packed = model(tmp_path / "base", FULL), model(tmp_path / "a", FULL, config)
    align_and_fail(base=base, a=packed)
    align(base=base, a=model(tmp_path / "b", FULL, {"quantization_config": None}))


def test_a_model_with_a_file_of_a_quantiser_is_refused(tmp_path: Path) -> None:
    packed = model(tmp_path / "a", FULL)
    (packed / "quantize_config.json").write_text("{}")
    assert (
        "quantize_config.json"
        in align_and_fail(base=model(tmp_path / "base", FULL), a=packed).message
    )


def test_integer_buffers_are_accepted(tmp_path: Path) -> None:
    weights = {**FULL, **tensors(BUFFERS)}
    align(base=weights, a=model(tmp_path, weights))


def test_a_quantised_repository_is_refused_before_its_weights_are_downloaded(
    hub: HubServer, tmp_path: Path
) -> None:
    hub.add_directory("org/awq", model(tmp_path, tensors(FORMS["AWQ"])))
    align_and_fail(a="org/awq")
    assert not hub.asked("model.safetensors", "HEAD")


@pytest.mark.plugins
def test_an_adapter_of_a_quantised_base_is_a_plain_adapter(tmp_path: Path) -> None:
    names = {"lora_A": (2, 8), "lora_B": (8, 2)}
    factors = {f"base_model.model.h.0.q.{k}.weight": torch.ones(v) for k, v in names.items()}
    adapter = model(tmp_path, FULL, {"quantization_config": {"load_in_4bit": True}})
    (adapter / "model.safetensors").unlink()
    save_file(factors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    align(base=FULL, a=str(adapter))
    packed = {name: tensor.to(torch.int8) for name, tensor in factors.items()}
    save_file(packed, adapter / "adapter_model.safetensors")
    align_and_fail(base=FULL, a=str(adapter))


def test_a_dtype_of_few_bits_is_called_quantised(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(CheckpointError, match="unknown dtype 'F4': the checkpoint is quantised"):
        CheckpointSource(path)


# --- weights that are not read at all -----------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "says", "advice"),
    [
        (["pytorch_model.bin"], "pytorch_model.bin, a pickle", "save_pretrained"),
        (["tf_model.h5"], "tf_model.h5, in the format of another library", "save_pretrained"),
        (["llama-Q4.ggml"], "llama-Q4.ggml, in the format of llama.cpp", "dequantise"),
        (["unet.safetensors"], "it has unet.safetensors", "/unet.safetensors"),
        (["model-00001-of-00002.safetensors"], "1 shards.*without their index", "index"),
        (["adapter_model.safetensors"], "without adapter_config.json", "adapter_config"),
    ],
)
def test_files_in_place_of_a_model_are_named(
    tmp_path: Path, hub: HubServer, files: list[str], says: str, advice: str
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=says) as caught:
        align(a=str(tmp_path))
    assert advice in (caught.value.hint or "")
    hub.add("org/name", dict.fromkeys(files, b"x"))
    with pytest.raises(CheckpointError, match=says):
        align(a="org/name")


@pytest.mark.parametrize("name", ["a.ggml", "a.bin", "a.txt"])
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"is not a \.safetensors file: it is") as caught:
        align(a=str(tmp_path / name))
    assert ("dequantise" if name == "a.ggml" else "save_pretrained") in (caught.value.hint or "")


def test_gguf_names_the_plugin_that_reads_it() -> None:
    kind = unsupported_kind("model-Q4_K_M.gguf")
    assert kind is not None
    assert "The plugin formats-quantised reads it" in kind[1]
