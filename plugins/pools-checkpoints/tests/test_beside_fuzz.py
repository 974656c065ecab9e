"""Mutants of the files beside the weights: read, or refused with a `FusionError`.

As `test_format_fuzz` for headers: small on every push, larger by `nox -s fuzz`.
"""

from __future__ import annotations

import copy
import json
import os
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_core import AlignmentPolicy
from fusion_core.errors import FusionError
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.plugins  # an adapter is among the models

ROUNDS = 4
MUTANTS = int(os.environ.get("FUSION_FUZZ_MUTANTS", "10000")) // 80 // ROUNDS
SEED = os.environ.get("FUSION_FUZZ_SEED", "2026")

CONFIG = {
    "architectures": ["GemmaForCausalLM"],
    "model_type": "gemma",
    "hidden_size": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": None,
    "hidden_act": "gelu",
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {}},
    "text_config": {"model_type": "x", "hidden_size": 3},
    "vision_config": {"model_type": "y", "patch_size": [1, 2]},
    "quantization_config": None,
    "_name_or_path": "org/base",
    "vocab_size": 6,
    "id2label": {"0": "a", "1": "b"},
    "label2id": {"a": 0, "b": 1},
    "problem_type": "regression",
}
FILES: dict[str, Any] = {
    "config.json": CONFIG,
    "generation_config.json": {"temperature": 0.5, "eos_token_id": [1, 2]},
    "preprocessor_config.json": {"image_mean": [0.5], "size": {"height": 2}, "resample": 2},
    "processor_config.json": {"image_processor": {"image_std": [0.5]}, "chat_template": "x"},
    "chat_template.json": {"chat_template": "x"},
    "tokenizer.json": {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Metaspace", "add_prefix_space": True},
        "added_tokens": [{"id": 2, "content": "<s>"}],
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b", ["a", "b"]]},
    },
    "tokenizer_config.json": {
        "tokenizer_class": "GemmaTokenizer",
        "chat_template": [{"name": "default", "template": "x"}],
        "eos_token": {"content": "<s>"},
        "added_tokens_decoder": {"2": {"content": "<s>"}},
    },
    "special_tokens_map.json": {"eos_token": "<s>"},
    "added_tokens.json": {"<x>": 3},
    "vocab.json": {"a": 0, "b": 1},
    "model.safetensors.index.json": {"weight_map": {"q.weight": "model.safetensors"}},
    "adapter_config.json": {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 2,
        "rank_pattern": {"q|k": 1},
        "alpha_pattern": {"^q$": 3.0},
        "base_model_name_or_path": "org/base",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "revision": "main",
        "modules_to_save": ["q"],
    },
}
ODD: list[Any] = [
    None, True, 0, -1, 2**63, 10**80, 10**200, 1e300, 1e-300, float("nan"), float("inf"), -0.0, "",
    "x", "\ud800", "\0", "a\x1b[31m", "x" * 5000, "../..", "/dev/zero", "/", "org/name", [],
    {}, [[]], {"": {}}, {"model_type": []}, [{}], {"\ud800": 1}, "a?" * 50, {"(a*)*b": 1},
    {"a": {"b": "c"}},
]  # fmt: skip
TEXTS = [
    b"", b"[]", b"null", b"{", b'{"a":' * 70 + b"1" + b"}" * 70,
    b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"a":' + b"[" * 99999, b'{"a": 1e999}', b'{"a": ' + b"9" * 5000 + b"}", b'{"a":1,"a":2}',
    b'{"a": "\\ud800"}', b'{"\\udfff": 1}', b"\xff\xfe",
    b'{"a": ' + b"9" * 400 + b".5}", b"\xef\xbb\xbf{}",
]  # fmt: skip


def positions(value: Any) -> list[tuple[Any, Any]]:
    """Return every container with every key in it."""
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    inner = [position for key in keys for position in positions(value[key])]
    return [*((value, key) for key in keys), *inner]


def mutant(rng: random.Random, content: Any) -> bytes:
    if rng.random() < 0.1:
        return rng.choice(TEXTS)
    changed = json.loads(json.dumps(content))
    for _ in range(rng.choice([1, 1, 2, 3])):
        container, key = rng.choice(positions(changed) or [({}, "x")])
        match rng.randrange(4):
            case 0 if isinstance(container, dict) and key in container:
                container[rng.choice(["", "x", "\ud800", "9" * 30, "model_type"])] = container.pop(
                    key
                )
            case 1 if isinstance(container, dict):
                container.pop(key, None)
            case _:
                container[key] = copy.deepcopy(rng.choice(ODD))
    text = json.dumps(changed).encode()
    if rng.random() < 0.2:
        at = rng.randrange(len(text) + 1)
        text = (
            text[:at] + rng.choice([b"", b'"', b"9" * 30, b"\\ud8", b"[", b"NaN"]) + text[at + 1 :]
        )
    return text


def write(directory: Path, kind: str) -> None:
    directory.mkdir()
    for name, content in FILES.items():
        if (name == "adapter_config.json") == (kind == "adapter") or "token" in name:
            (directory / name).write_text(json.dumps(content))
    if kind == "adapter":
        names = {"lora_A": (1, 4), "lora_B": (4, 1)}
        factors = {f"base_model.model.q.{k}.weight": torch.ones(v) for k, v in names.items()}
        save_file(factors, directory / "adapter_model.safetensors")
        for name in ("config.json", "model.safetensors.index.json"):
            (directory / name).unlink(missing_ok=True)
    else:
        save_file({"q.weight": torch.ones(4, 4)}, directory / "model.safetensors")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", range(ROUNDS))
def test_mutant_side_files_are_refused_or_read(tmp_path: Path, number: int) -> None:
    rng = random.Random(f"{SEED}-beside-{number}")
    for kind in ("base", "model", "adapter"):
        write(tmp_path / kind, kind)
    taken = 0
    for _ in range(MUTANTS):
        file = rng.choice(
            [path for kind in ("model", "adapter") for path in (tmp_path / kind).glob("*.json")]
        )
        good, text = file.read_bytes(), mutant(rng, json.loads(file.read_bytes()))
        file.write_bytes(text)
        policy = AlignmentPolicy(config=rng.choice(["error", "warn"]), tokenizer="warn")
        models = {"model": str(tmp_path / "model"), "adapter": str(tmp_path / "adapter")}
        try:
            pool = CheckpointsPool(CheckpointsConfig(base=str(tmp_path / "base"), models=models))
            warnings = pool.aligned(policy).warnings
            "\n".join(warnings).encode()
            own_pool = CheckpointsPool(CheckpointsConfig(base=str(file.parent), models=models))
            own_pool.assets(dtype=torch.float16)
            taken += 1
        except FusionError as error:
            str(error).encode()
        file.write_bytes(good)
    assert taken or MUTANTS < 100
