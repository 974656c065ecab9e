"""Tokenizers of three models, which number their tokens differently."""

from __future__ import annotations

import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = ["models are merged token by token, whatever the numbers of their tokens are"]
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def tokenizer(order: int, *added: str) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with permuted token ids, unless `order` is 0."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=50, special_tokens=list(SPECIAL.values()))
    )
    data = json.loads(core.to_str())
    count = core.get_vocab_size()
    places = torch.arange(count)
    if order:
        places = torch.randperm(count, generator=torch.Generator().manual_seed(order))
    data["model"]["vocab"] = {t: int(places[n]) for t, n in data["model"]["vocab"].items()}
    for entry in data["added_tokens"]:
        entry["id"] = int(places[entry["id"]])
    whole = Tokenizer.from_str(json.dumps(data))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, **SPECIAL)
    tokenizer.add_tokens(list(added), special_tokens=True)
    return tokenizer


TOKENIZERS = {
    "base": tokenizer(0),
    "a": tokenizer(1, "<|user|>", "<|a|>"),
    "b": tokenizer(2, "<|b|>", "<|user|>"),
}
