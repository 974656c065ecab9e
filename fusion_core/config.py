"""Recipes and options as models: their shape, without knowing any component.

Nothing heavy is imported: configuration classes live in modules without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field

from fusion_core.recipes import from_name
from fusion_core.validation import STRICT, Options, validated

#: One factor an expert, by name or in pool order; absent ones are 1.
ExpertWeights = Mapping[str, float] | Sequence[float]


class ComponentConfig(Options):
    """The options of a component: frozen, and refusing what it does not know.

    A field's description is the docstring below it; `fuse info`, `--help` and the JSON schema show
    it.
    """


class Choice(BaseModel):
    """A component's name and options, the options not yet validated."""

    model_config = ConfigDict(extra="allow", frozen=True, arbitrary_types_allowed=True)

    name: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})

    def or_named(self, name: str | None) -> Choice:
        """Return this choice or, if it has no name, one of that name with the same options."""
        if self.name is not None or name is None:
            return self
        return Choice(name=name, **self.options)


class OutputOptions(Options):
    """Where the merged model goes, and in which form."""

    path: Annotated[str, Field(min_length=1)] | None = None
    """The directory to write; default: outputs/<pool>-<algorithm>-<n>."""
    dtype: Literal["float64", "float32", "float16", "bfloat16"] | None = None
    """The dtype of floating-point tensors; default: the base's."""
    shard_size: Annotated[ByteSize, Field(gt=0)] = ByteSize(5_000_000_000)
    """The largest size of one file, e.g. 5GB; a larger tensor has a file of its own."""


class AlignmentPolicy(Options):
    """What to do where experts differ from the base; each policy is named, none is guessed."""

    missing: Literal["error", "base"] = "error"
    """A tensor that an expert lacks: refuse, or take the base's."""
    extra: Literal["error", "drop"] = "error"
    """A tensor that only an expert has: refuse, or leave it out."""
    dtype: Literal["error", "promote"] = "promote"
    """Different dtypes: refuse, or compute in the wider one."""
    config: Literal["error", "warn", "ignore"] = "error"
    """Configurations that make a merge meaningless (rope, heads, activation): refuse, or warn."""
    tokenizer: Literal["error", "warn", "ignore"] = "error"
    """Tokenizers that give one number to different tokens: refuse, or warn."""
    vocab: Literal["error", "pad"] = "error"
    """Embeddings of different vocabulary sizes: refuse, or bring all to the largest."""
    nan: Literal["error", "allow"] = "error"
    """NaN or infinity in the weights: refuse, or let it through."""


Component_ = Annotated[Choice, BeforeValidator(from_name)]


class Recipe(Options):
    """One run: what to fuse, how, and where it goes (phase one: shape only)."""

    model_config = ConfigDict(**{**STRICT, "arbitrary_types_allowed": True})

    algorithm: Component_ = Choice()
    """How to fuse: a name, or a mapping with `name` and options; a run needs one."""
    model_pool: Component_ = Choice()
    """What to fuse; default: the pool that is installed as the default one."""
    task_pool: Component_ = Choice()
    """What to evaluate on, and what adaptive algorithms see; default: the model pool's own."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Everything random derives from it."""
    output: OutputOptions = OutputOptions()
    alignment: AlignmentPolicy = AlignmentPolicy()


def choice_of(value: Any) -> Choice:  # noqa: ANN401 - YAML holds anything
    """Read a component's section: a name, or a mapping with `name` and options."""
    return validated(Choice, from_name(value))
