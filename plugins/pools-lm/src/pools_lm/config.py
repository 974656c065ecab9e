"""Options of the language pools. Importing them does not import torch."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fusion_core import ComponentConfig, InputPath
from pools_checkpoints import CheckpointsConfig

#: The value of `tokenizer` that combines the tokens of all models.
UNION = "union"
#: The value of `chat_template` that takes the most frequent template of the models.
AUTO = "auto"
#: Formats of chats that `chat_template` may name.
CHAT_FORMATS = ("alpaca", "chatml", "exaone", "llama3", "mistral")


def _check_template(value: str) -> str:
    """Raise `ValueError` for a text that is neither a format nor a template."""
    if value not in {AUTO, *CHAT_FORMATS} and "{" not in value:
        formats = ", ".join(CHAT_FORMATS)
        raise ValueError(f"expected auto, one of {formats}, or a Jinja template, got {value!r}")
    return value


class TokenRow(ComponentConfig):
    """The row of one token, in all models that lack the token."""

    model: str | None = None
    """Copy the row from this model: `base` or an expert. Default: zeros."""
    token: str | None = None
    """Copy the row of this token of the model. Default: of the token itself."""
    id: Annotated[int, Field(ge=0)] | None = None
    """Copy the row with this number, instead of `token`."""
    force: bool = False
    """Replace the rows of models that have the token, too."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.token is not None and self.id is not None:
            raise ValueError("expected one of token and id, got both")
        if self.model is None and (self.token is not None or self.id is not None):
            raise ValueError("missing model: it has the token or id whose row is copied")
        return self


class LanguageConfig(CheckpointsConfig):
    """A base and experts: paths, hub ids or recipes (in Python also modules and state dicts)."""

    tokenizer: str = "base"
    """Choose the vocabulary of the merged model: `base`, `union` (the tokens of all models), or the
    name of an expert. The output gets the chosen model's tokenizer and chat template."""
    chat_template: Annotated[str, AfterValidator(_check_template)] | None = None
    """Give the output a chat template: a format (`alpaca`, `chatml`, `exaone`, `llama3` or
    `mistral`), a Jinja template, or the most frequent one of the models (`auto`). Default: that of
    the model whose tokenizer is chosen."""
    new_rows: Literal["expert", "subwords", "zero"] = "expert"
    """Fill the row of a token that neither a model nor the base knows with the mean of the experts
    that know it (`expert`), with the mean of the pieces that the model's tokenizer splits it into
    (`subwords`), or with zeros."""
    tokens: dict[str, TokenRow] = Field(default={})
    """Fill the rows of single tokens, such as {"<|user|>": {model: chat}}. A token that the chosen
    tokenizer lacks is added to it."""
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None
    """Round the number of embedding rows up to a multiple of this. Default: the row count of the
    model whose tokenizer is chosen, or more if its tokens need more."""


class HarnessConfig(ComponentConfig):
    """Tasks of EleutherAI's lm-evaluation-harness."""

    tasks: Annotated[list[str], Field(min_length=1)]
    """Names of harness tasks, or of groups that report an aggregate score, in the order of results.
    `lm-eval ls tasks` lists them."""
    include_path: InputPath | None = None
    """Load your own tasks from a directory of harness YAML files. The files may run code, so this
    needs `--trust lm-eval-include-path`."""
    main: dict[str, str] = Field(default={})
    """Set the main metric per task, such as {hellaswag: acc_norm}. Default: each task's first
    metric."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Set the number of solved examples before each question. Default: each task's own number."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Evaluate only the first examples of each task, and of each task in a group."""
    apply_chat_template: bool = False
    """Format questions with the models' chat template."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 8
    """Set the number of sequences per batch. `auto`: as many as fit on the GPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Load models in this dtype. `auto`: the dtype in the model's configuration."""
    device: str | None = None
    """Evaluate on this device: cpu, cuda, cuda:1 or mps. Default: the run's device."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Use one seed for all random draws. Default: the harness's own seeds, which published results
    use (0 for Python's random, 1234 otherwise)."""
    python: InputPath | None = None
    """Run the harness with this Python interpreter, whose environment contains lm-eval. It needs
    `--trust lm-eval-python`. Default: the current interpreter."""

    def needs_trust(self) -> Mapping[str, str]:
        """Return the options that can run code, with what each one allows."""
        needs: dict[str, str] = {}
        if self.python is not None:
            needs["lm-eval-python"] = f"start the program {self.python}"
        if self.include_path is not None:
            needs["lm-eval-include-path"] = (
                f"import the Python files named by the YAML files in {self.include_path}"
            )
        return needs
