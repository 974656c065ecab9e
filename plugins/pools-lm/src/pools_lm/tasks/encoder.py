"""How texts become tokens, and how an encoder makes a vector of each.

As sentence-transformers does where a directory is its own; else the mean over tokens.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from fnmatch import filter as matching
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import mark_features
from fusion_core.errors import FusionError, RecipeError
from pools_lm.beside import parsed
from pools_lm.tasks.modules import Pooling, modules_of
from pools_lm.tasks.prompts import Prompts, described
from pools_lm.tasks.scoring import by_length, padded

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
    """A text, or two that are read together, as a tokenizer has it; and its class."""

    tokens: Mapping[str, Sequence[int]]
    label: int | None = None

    def __len__(self) -> int:
        return len(self.tokens["input_ids"])


@dataclass(frozen=True)
class Encoder:
    """What stands between texts and vectors, but for the model itself."""

    prompts: Prompts
    pooling: Pooling
    steps: Sequence[Step]
    #: stands before every text
    prompt: str
    #: tokens that a model reads at most
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
        """Read what lies beside models; raises `FusionError` for files that do not suffice."""
        files = pool.assets()
        prompts = Prompts.of(files, described(pool), length=length)
        own = _own_settings(files)
        most = own.get("max_seq_length") if length is None else None
        return cls(
            prompts,
            *modules_of(files),
            _prompt(files, prompt),
            min(prompts.length, int(most or prompts.length)),
            bool(own.get("do_lower_case", False)),
        )

    def tokens(
        self, lines: Sequence[Line], text: str, pair: str | None = None
    ) -> list[dict[str, list[int]]]:
        """Return the tokens of each line's text, or of two texts that are read together.

        `text` and `pair` are templates. Longer texts lose their end. Raises `FusionError` naming
        the line for a text without tokens.
        """
        rows = self.prompts.tokenizer.encode_rows(
            [self._put(self.prompt + line.filled(text)) for line in lines],
            None if pair is None else [self._put(line.filled(pair)) for line in lines],
            self.length,
        )
        for line, row in zip(lines, rows, strict=True):
            if not row["input_ids"]:
                raise FusionError(f"{line.place}: the text is empty")
        return rows

    def identity(self) -> dict[str, Any]:
        """Return all that vectors depend on, but for the model."""
        return {"prompt": self.prompt, "length": self.length, "models": self.prompts.digest}

    def embed(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors of a batch, shape (texts, width), at least fp32."""
        hidden: Tensor = run(_encoder(model), inputs).last_hidden_state
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        vectors = self.pooling(hidden, inputs["attention_mask"])
        for step in self.steps:
            vectors = step(vectors)
        return mark_features(model, vectors)

    def embeddings(
        self, model: nn.Module, examples: Sequence[Example], *, batch_size: int, said: str
    ) -> Tensor:
        """Return the vectors of all examples, on the CPU; `said` is what progress is called."""
        device = next(model.parameters()).device

        @torch.no_grad()
        def embedded(some: Sequence[Example]) -> Tensor:
            inputs = {name: each.to(device) for name, each in stacked(some).items()}
            return self.embed(model, inputs).cpu()

        rows = by_length(embedded, examples, model, batch_size=batch_size, said=said)
        return torch.stack(rows)

    def _put(self, text: str) -> str:
        return text.lower() if self.is_lower else text


def stacked(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Return a batch's tensors by name, shape (examples, tokens), with zeros on the right."""
    rows = [example.tokens for example in examples]
    return {name: padded([row[name] for row in rows])["input_ids"] for name in rows[0]}


def run(module: nn.Module, inputs: Mapping[str, Tensor]) -> Any:  # noqa: ANN401 - its own kind
    """Return what a module of transformers makes of the inputs that it knows.

    Padding is the token that the model's configuration names: some look for it.
    """
    known = inspect.signature(module.forward).parameters
    config: Any = module.config
    filler = getattr(config, "pad_token_id", None) or 0
    ids = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, filler)
    given = {**inputs, "input_ids": ids}
    return module(**{name: each for name, each in given.items() if name in known})


def _encoder(model: nn.Module) -> nn.Module:
    """Return the part of a model that reads texts, without a head or a decoder."""
    whole: Any = model
    base = whole.base_model
    found: nn.Module = base.get_encoder() if base.config.is_encoder_decoder else base
    return found


def _own_settings(files: Files) -> dict[str, Any]:
    """Return what sentence-transformers keeps of how texts are read."""
    names = matching(files, "sentence_*_config.json")
    return dict(parsed(files, names[0])) if names else {}


def _prompt(files: Files, name: str | None) -> str:
    settings = parsed(files, _SETTINGS) if _SETTINGS in files else {}
    prompts = settings.get("prompts") or {}
    chosen = settings.get("default_prompt_name") if name is None else name
    if not chosen:
        return ""
    if chosen not in prompts:
        raise RecipeError(
            f"task_pool.prompt: the models have no prompt {chosen!r}",
            hint=f"Prompts in {_SETTINGS}: {', '.join(prompts) or 'none'}.",
        )
    return str(prompts[chosen])
