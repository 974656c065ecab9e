"""The tiny Llama, its tokenizer, and batches."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

State = dict[str, Tensor]

BOS, END, PAD, USER, ASSISTANT = "<|begin|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"
SPECIAL = (BOS, END, PAD, USER, ASSISTANT)
_PIECES = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
IGNORED = -100


@dataclass(frozen=True)
class Shape:
    """Sizes of the model."""

    vocabulary: int = 1024
    width: int = 192
    layers: int = 4
    heads: int = 6
    inner: int = 384
    positions: int = 512


def train_tokenizer(texts: Iterable[str], shape: Shape) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which each digit is one token."""
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    begins = [(BOS, SPECIAL.index(BOS))]
    bpe.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=begins)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=TEMPLATE,
        model_max_length=shape.positions,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def new_model(shape: Shape, words: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return a model with initial weights in fp32 and eager attention."""
    torch.manual_seed(seed)
    ids = {
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.inner,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        attn_implementation="eager",
        **ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=32, **ids)
    return model


# --- batches ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """Token ids, with the index of the first learned one."""

    ids: list[int]
    start: int


class Encoder:
    """Converts texts and exchanges to tokens."""

    def __init__(self, words: PreTrainedTokenizerFast) -> None:
        """Store the tokenizer and the ids of its special tokens."""
        self.words = words
        self.bos, self.end, self.user, self.assistant = (
            int(words.convert_tokens_to_ids(token)) for token in (BOS, END, USER, ASSISTANT)
        )

    def plain(self, text: str) -> list[int]:
        """Return the tokens of a text, without special tokens."""
        return list(self.words(text, add_special_tokens=False)["input_ids"])

    def text(self, text: str) -> Encoded:
        """Return a text whose tokens are all learned."""
        return Encoded([self.bos, *self.plain(text)], 1)

    def prompt(self, question: str) -> list[int]:
        """Return the chat template's prompt before an answer."""
        return [self.bos, self.user, *self.plain(question), self.end, self.assistant]

    def exchange(self, question: str, answer: str) -> Encoded:
        """Return a question and its answer, of which only the answer is learned."""
        before = self.prompt(question)
        return Encoded([*before, *self.plain(answer), self.end], len(before))


def batch(items: Sequence[Encoded], pad: int) -> tuple[Tensor, Tensor]:
    """Return ids and labels ``[n, longest]``, padded on the right; each label is at its own id."""
    longest = max(len(item.ids) for item in items)
    ids = torch.full((len(items), longest), pad)
    labels = torch.full((len(items), longest), IGNORED)
    for row, item in enumerate(items):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        labels[row, item.start : len(item.ids)] = torch.tensor(item.ids[item.start :])
    return ids, labels


def loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of the learned tokens in nats, with bf16 autocast.

    Padding is on the right and attention is causal, so no mask is needed.
    """
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        counted = wanted != IGNORED
        logits = model.lm_head(hidden[counted])
    return functional.cross_entropy(logits.float(), wanted[counted])


def packed(texts: Sequence[str], encoder: Encoder, length: int, seed: int) -> Tensor:
    """Concatenate texts, each after its BOS, and split them into rows ``[n, length]``."""
    mixed = list(texts)
    random.Random(seed).shuffle(mixed)
    ids = [identifier for ids in encoder.words(mixed)["input_ids"] for identifier in ids]
    rows = len(ids) // length
    return torch.tensor(ids[: rows * length]).view(rows, length)


def state(model: LlamaForCausalLM) -> State:
    """Return a copy of the parameters, with tied ones once."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def rounded(weights: State) -> State:
    """Return weights rounded to the shipped fp16, in fp32."""
    return {name: tensor.half().float() for name, tensor in weights.items()}


def load(model: LlamaForCausalLM, weights: State) -> None:
    """Load weights into the model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
