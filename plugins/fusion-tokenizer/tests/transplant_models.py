"""Tokenizers trained on the spot, and tiny models for them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
import typer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from typer.testing import CliRunner

from fusion_core.errors import FusionError
from fusion_tokenizer.command import transplant_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps under the old oak tree.",
    "A tokenizer splits a text into pieces: words, parts of words, digits and punctuation marks.",
    "def add(one, other):\n    return one + other  # naïve, but it works\n",
    "Numbers such as 3, 14 and 159 are common; so are names like Zoë, Łukasz and François.",
]
OTHER_TEXTS = [
    "Rain falls on the mountains in autumn, and rivers carry stones down to the quiet valley.",
    "The quick answer is not always the right answer; the dog under the tree does not mind.",
    "Smørrebrød, crème brûlée and jalapeños are on the menu: 7 dishes for 28 people.",
]


def byte_level(size: int, texts: list[str], *special: str) -> Tokenizer:
    """Return a BPE tokenizer like GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def blanks(size: int, texts: list[str], *special: str) -> Tokenizer:
    """Return a BPE tokenizer like Llama 2's: SentencePiece's spelling, and byte tokens."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", *special, *tokens], show_progress=False
    )
    words = [word for text in texts for word in f" {text}".replace(" ", " ▁").split()]
    tokenizer.train_from_iterator([word.replace("▁", " ").strip() for word in words], trainer)
    # byte tokens belong to the vocabulary, and are no control tokens
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = [
        token for token in description["added_tokens"] if token["content"] not in tokens
    ]
    return Tokenizer.from_str(json.dumps(description))


def unigram(size: int, texts: list[str], *special: str) -> Tokenizer:
    """Return a Unigram tokenizer like T5's, with a metaspace."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=["<unk>", *special],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, **roles: str) -> None:
    """Save a tokenizer as transformers does, with the token of each role."""
    directory.mkdir(exist_ok=True, parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def save_model(
    directory: Path, rows: int, *, kind: str = "llama", seed: int = 0, **options: Any
) -> None:
    """Save a tiny model whose embeddings have `rows` rows."""
    torch.manual_seed(seed)
    dtype = options.pop("dtype", torch.float32)
    shard_size = options.pop("max_shard_size", "1GB")
    if kind == "gpt2":
        sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=rows, **sizes, **options)
        )
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0}
        config = transformers.LlamaConfig(vocab_size=rows, **{**sizes, **options})
        model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.to(dtype).save_pretrained(directory, max_shard_size=shard_size)


@dataclass(frozen=True)
class Models:
    """The directories of a model and a donor."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def donor(self) -> Path:
        return self.root / "donor"

    @property
    def output(self) -> Path:
        return self.root / "output"

    def transplant(
        self, *options: object, model: Path | None = None, donor: Path | None = None
    ) -> str:
        """Run the command, and return its standard output; raise what it raises."""
        app = typer.Typer()
        app.command()(transplant_tokenizer)
        given = [model or self.model, donor or self.donor, "-o", self.output, "-q", *options]
        result = CliRunner().invoke(app, [*map(str, given)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    def refuse(self, *options: object, **sides: Path) -> FusionError:
        """Run the command, which must be refused and leave no output."""
        before = sorted(self.root.rglob("*"))
        with pytest.raises(FusionError) as caught:
            self.transplant(*options, **sides)
        assert sorted(self.root.rglob("*")) == before
        return caught.value


def permute(tokenizer: Tokenizer, seed: int) -> tuple[Tokenizer, torch.Tensor]:
    """Return a tokenizer with its ids in another order, and the old id of each new one."""
    count = tokenizer.get_vocab_size()
    old = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    new_id = {int(number): row for row, number in enumerate(old)}
    description = json.loads(tokenizer.to_str())
    vocabulary = description["model"]["vocab"]
    description["model"]["vocab"] = {token: new_id[vocabulary[token]] for token in vocabulary}
    for token in description["added_tokens"]:
        token["id"] = new_id[token["id"]]
    return Tokenizer.from_str(json.dumps(description)), old
