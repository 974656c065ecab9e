"""From texts to embeddings: tokenization, the encoder, and pooling.

A SentenceTransformer's directory defines its own pooling. Other encoders use the mean over tokens.
"""

from __future__ import annotations

import fnmatch
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion_adapting import map_batches
from fusion_core import mark_features
from fusion_core.errors import FusionError, RecipeError
from pools_lm.side_files import load_json
from pools_lm.tasks.modules import Pooling, read_modules, unsupported_embeddings
from pools_lm.tasks.prompts import Prompts, name_tokenizer_model
from pools_lm.tasks.reading import limit_padding
from pools_lm.tasks.scoring import pad_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from fusion_core import ModelPool
    from fusion_core.weights import Files
    from pools_lm.tasks.lines import Line
    from pools_lm.tasks.modules import Step

_SETTINGS = "config_sentence_transformers.json"


@dataclass(frozen=True)
class Example:
    """The tokens of a text, or of a pair of texts, with its class."""

    tokens: Mapping[str, Sequence[int]]
    label: int | None = None

    def __len__(self) -> int:
        return len(self.tokens["input_ids"])


@dataclass(frozen=True)
class Encoder:
    """The steps before and after the model that turn texts into vectors."""

    prompts: Prompts
    pooling: Pooling
    steps: Sequence[Step]
    #: prefix of every text
    prompt: str
    #: maximum number of tokens per text
    length: int
    is_lower: bool = False

    @classmethod
    def of(
        cls,
        pool: ModelPool[Any],
        *,
        prompt: str | None = None,
        length: int | None = None,
    ) -> Encoder:
        """Read a pool's side files; raise `FusionError` if they do not suffice."""
        files = pool.assets()
        prompts = Prompts.of(files, name_tokenizer_model(pool), length=length)
        settings_files = fnmatch.filter(files, "sentence_*_config.json")
        settings = dict(load_json(files, settings_files[0])) if settings_files else {}
        for kind in ("common", "text", "chat_template"):
            if (settings.get("processing_kwargs") or {}).get(kind):
                raise unsupported_embeddings(f"{settings_files[0]} has processing_kwargs of {kind}")
        # As in sentence-transformers, this takes precedence over the tokenizer's limit.
        limit = int(settings.get("max_seq_length") or 0) if length is None else 0
        return cls(
            prompts,
            *read_modules(files),
            _read_prompt(files, prompt),
            min(limit, prompts.positions or limit) or prompts.length,
            bool(settings.get("do_lower_case", False)),
        )

    def tokenize(
        self, lines: Sequence[Line], text: str, pair: str | None = None
    ) -> list[dict[str, list[int]]]:
        """Return the tokens of each line's text, or of its pair of texts, truncated at the end.

        `text` and `pair` are templates. Raises `FusionError` naming the line for a text without
        tokens.
        """
        texts = [self.prompt + line.fill(text) for line in lines]
        seconds = None if pair is None else [line.fill(pair) for line in lines]
        if self.is_lower:
            texts = [text.lower() for text in texts]
            seconds = seconds and [text.lower() for text in seconds]
        rows = self.prompts.tokenizer.encode_rows(texts, seconds, self.length)
        for line, row in zip(lines, rows, strict=True):
            if not row["input_ids"]:
                raise FusionError(f"{line.location}: the text is empty")
        return rows

    def identity(self) -> dict[str, Any]:
        """Return everything that vectors depend on, except the model."""
        return {"prompt": self.prompt, "length": self.length, "models": self.prompts.digest}

    def embed(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors of a batch, shape (texts, width), at least fp32."""
        transformer: Any = model
        module = transformer.base_model  # without a head
        if module.config.is_encoder_decoder:
            module = module.get_encoder()
        hidden: Tensor = run_module(module, inputs).last_hidden_state
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        vectors = self.pooling(hidden, inputs["attention_mask"])
        for step in self.steps:
            vectors = step(vectors)
        return mark_features(model, vectors)

    def embed_all(
        self, model: nn.Module, examples: Sequence[Example], *, batch_size: int, label: str
    ) -> Tensor:
        """Return the vectors of all examples on the CPU; `label` names them in progress notes."""
        device = next(model.parameters()).device

        @torch.no_grad()
        def embed_batch(batch: Sequence[Example]) -> Tensor:
            inputs = {name: tensor.to(device) for name, tensor in stack_examples(batch).items()}
            return self.embed(model, inputs).cpu()

        size = limit_padding(model, embed_batch, examples, batch_size)
        return torch.stack(map_batches(embed_batch, examples, model, batch_size=size, label=label))


def stack_examples(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Return a batch's named inputs, shape (examples, tokens), padded with zeros on the right."""
    rows = [example.tokens for example in examples]
    return {name: pad_rows([row[name] for row in rows])["input_ids"] for name in rows[0]}


def run_module(module: nn.Module, inputs: Mapping[str, Tensor]) -> Any:  # noqa: ANN401 - its own type
    """Call a module of transformers with the inputs that it accepts.

    Padding becomes the pad token of the model's configuration, because some models look for it.
    """
    accepted = inspect.signature(module.forward).parameters
    config: Any = module.config
    pad_id = getattr(config, "pad_token_id", None) or 0
    ids = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, pad_id)
    padded = {**inputs, "input_ids": ids}
    return module(**{name: tensor for name, tensor in padded.items() if name in accepted})


def _read_prompt(files: Files, name: str | None) -> str:
    settings = load_json(files, _SETTINGS) if _SETTINGS in files else {}
    prompts = settings.get("prompts") or {}
    chosen = settings.get("default_prompt_name") if name is None else name
    if not chosen:
        return ""
    if chosen not in prompts:
        raise RecipeError(
            f"task_pool.prompt: unknown prompt {chosen!r}",
            hint=f"Prompts in {_SETTINGS}: {', '.join(prompts) or 'none'}.",
        )
    return str(prompts[chosen])
