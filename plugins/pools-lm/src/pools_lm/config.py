"""Options of the language pools; free of torch, so that listing them costs nothing."""

from typing import Annotated, Literal

from pydantic import Field

from fusion_core import CheckpointsConfig

#: The choice of a tokenizer that has every model's tokens.
UNION = "union"


class LanguageConfig(CheckpointsConfig):
    """A base and experts: paths, hub ids or recipes (from Python also live models, state dicts)."""

    tokenizer: str = "base"
    """Whose tokens the rows of embeddings and heads are: the base's, all models' (union), or those
    of the expert of this name. Its tokenizer and chat template go along."""
    new_rows: Literal["expert", "subwords", "zero"] = "expert"
    """What a model has for a token that neither it nor the base knows: the mean of the experts that
    know it, the mean of the pieces that its own tokenizer cuts the token into, or zeros."""
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None
    """Round the number of rows up to a multiple of this; default: as many as the base or expert
    whose tokenizer it is has, and more only where they do not suffice."""
