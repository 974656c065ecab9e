"""Small models of five architectures, and Llama's as a hub has them, made on the spot."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING

import torch
import transformers
from oracle_tokenizers import TOKENIZERS
from parity_configurations import IN_BFLOAT16, LAYERS
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {"hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": LAYERS}
SIZES |= {"num_attention_heads": 2, "vocab_size": len(TOKENIZERS["base"])}
SIZES |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
HEADS = {"num_key_value_heads": 2, "head_dim": 8}
CONFIGURATIONS = {
    "llama": transformers.LlamaConfig(**SIZES, **HEADS),
    "qwen2": transformers.Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "gpt2": transformers.GPT2Config(
        n_embd=16,
        n_layer=LAYERS,
        n_head=2,
        n_positions=16,
        vocab_size=SIZES["vocab_size"],
        bos_token_id=2,
        eos_token_id=3,
    ),
    "gemma": transformers.GemmaConfig(**SIZES, **HEADS),
    "mixtral": transformers.MixtralConfig(
        **SIZES, **HEADS, num_local_experts=3, num_experts_per_tok=2
    ),
}
MODELS = ("base", "a", "b", "c")


def write_models(root: Path) -> None:
    """Write a base and three experts of every architecture to `root/ARCHITECTURE/NAME`."""
    for kind, config in CONFIGURATIONS.items():
        dtype = torch.bfloat16 if kind in IN_BFLOAT16 else torch.float32
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for seed, name in enumerate(MODELS):
            torch.manual_seed(seed)
            for key, tensor in model.float().state_dict().items():
                if tensor.is_floating_point():
                    tensor.copy_(state[key] + bool(seed) * 0.2 * torch.randn_like(tensor))
            model.to(dtype).save_pretrained(root / kind / name)
            TOKENIZERS["base"].save_pretrained(root / kind / name)


#: tokenizers and chat templates of the models of a hub
HUB = {
    "base": ("base", "{{ messages[0]['content'] + ' is what the base was asked' }}"),
    **dict.fromkeys(
        "ab", ("base", "{{ messages[0]['content'] + ' is what an expert was asked' }}")
    ),
    **dict.fromkeys("cde", ("base", None)),
    "chat": ("a", None),
    "code": ("b", None),
}


def write_hub(folder: Path) -> None:
    """Write Llamas with different tokenizers and templates, and an adapter."""
    torch.manual_seed(0)
    state = {
        name: 0.5 * torch.randn(shape) for name, shape in _shapes(len(TOKENIZERS["base"])).items()
    }
    for seed, (name, (kind, template)) in enumerate(HUB.items()):
        torch.manual_seed(seed)
        tokenizer = copy.deepcopy(TOKENIZERS[kind])
        config = {**CONFIGURATIONS["llama"].to_dict(), "vocab_size": len(tokenizer)}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
        for key, tensor in model.state_dict().items():
            rows = min(len(tensor), len(state[key]))
            tensor.normal_(std=0.5)
            tensor[:rows] = state[key][:rows] + bool(seed) * 0.2 * torch.randn_like(tensor[:rows])
        model.save_pretrained(folder / name)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder / name)
    _write_adapter(folder / "lora")


def _shapes(rows: int) -> dict[str, torch.Size]:
    config = {**CONFIGURATIONS["llama"].to_dict(), "vocab_size": rows}
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _write_adapter(folder: Path) -> None:
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM"}
    config |= {"target_modules": ["q_proj", "down_proj"], "base_model_name_or_path": "base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    draw = torch.Generator().manual_seed(9)
    sizes = {"self_attn.q_proj": (16, 16), "mlp.down_proj": (16, 48)}
    factors = {
        f"base_model.model.model.layers.{layer}.{module}.lora_{side}.weight": 0.3
        * torch.randn(shape, generator=draw)
        for layer in range(LAYERS)
        for module, (out, into) in sizes.items()
        for side, shape in {"A": (2, into), "B": (out, 2)}.items()
    }
    save_file(factors, folder / "adapter_model.safetensors")
