"""Recipes and options as models: their shape, without knowing any component.

Nothing heavy is imported: configuration classes live in modules without torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from fusion_core.errors import RecipeError
from fusion_core.recipe.paths import path_of
from fusion_core.recipe.text import from_name
from fusion_core.recipe.validation import STRICT, Options, validated

#: One factor an expert, by name or in pool order; absent ones are 1.
ExpertWeights = Mapping[str, float] | Sequence[float]


def _if_path(read: Callable[[Any], str]) -> BeforeValidator:
    return BeforeValidator(
        lambda value: read(value) if isinstance(value, str | os.PathLike) else value
    )


class ComponentConfig(Options):
    """The options of a component: frozen, and refusing what it does not know.

    A field's description is the docstring below it; `fuse info`, `--help` and the JSON schema show
    it. A class with `presets` declares an option `preset`. The preset that it names sets the
    options that are not given, and `fuse info` shows what each preset sets.
    """

    #: the options that each preset sets, by its name
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:  # noqa: ANN401 - whatever the recipe holds
        if not isinstance(values, Mapping):
            return values
        name = values.get("preset")
        preset = cls.presets.get(name, {}) if isinstance(name, str) else {}
        return {**preset, **values}

    def needs_trust(self) -> Mapping[str, str]:
        """Return what these options make the component do that can run code, by name.

        Such as starting a program, importing files, or unpickling what another machine sends. The
        names are those of the spec's `trust`; a reason reads "start the program ./x". Nothing is
        started or connected to before the person allows it, and no constructor does either.
        Default: nothing.
        """
        return {}


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


#: What dtypes are called elsewhere, and what they are called here and in what is recorded.
_DTYPES = {
    "fp64": "float64",
    "double": "float64",
    "fp32": "float32",
    "float": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
}


def _dtype_called(name: object) -> object:
    return _DTYPES.get(name, name) if isinstance(name, str) else name


Dtype = Annotated[
    Literal["float64", "float32", "float16", "bfloat16"],
    BeforeValidator(_dtype_called),
    WithJsonSchema({"enum": ["float64", "float32", "float16", "bfloat16", *_DTYPES]}),
]


class OutputOptions(Options):
    """Where the merged model goes, and in which form."""

    path: Annotated[str, _if_path(path_of)] | None = None
    """The directory to write; null: none, the merge stays in memory; default:
    outputs/<pool>-<algorithm>-<n>."""
    dtype: Dtype | None = None
    """The dtype of floating-point tensors; default: the base's. `fp16`, `bf16`, ... will do."""
    shard_size: Annotated[ByteSize, Field(gt=0, lt=2**63)] = ByteSize(5_000_000_000)
    """The largest size of one file, e.g. 5GB; a larger tensor has a file of its own."""

    @property
    def is_none(self) -> bool:
        """Whether the path is null, as opposed to not given: nothing is written."""
        return self.path is None and "path" in self.model_fields_set


class AlignmentPolicy(Options):
    """What to do where experts differ from the base; each policy is named, none is guessed."""

    missing: Literal["error", "base"] = "error"
    """A tensor that an expert lacks: refuse, or take the base's."""
    extra: Literal["error", "drop"] = "error"
    """A tensor that only an expert has: refuse, or leave it out."""
    dtype: Literal["error", "promote"] = "promote"
    """Different dtypes: refuse, or compute in the wider one."""
    config: Literal["error", "warn", "ignore"] = "error"
    """Configurations that make a merge meaningless (rope, heads, labels): refuse, or warn."""
    tokenizer: Literal["error", "warn", "ignore"] = "error"
    """Tokenizers that give one number to different tokens: refuse, or warn."""
    vocab: Literal["error", "pad"] = "error"
    """Embeddings of different vocabulary sizes: refuse, or bring all to the largest."""
    nan: Literal["error", "allow"] = "error"
    """NaN or infinity in the weights: refuse, or let it through."""
    outliers: Literal["error", "allow"] = "error"
    """A merged tensor with an entry more than 1000 times as far from the base as the largest entry
    of its task vectors: refuse, or let it through."""


Component_ = Annotated[Choice, BeforeValidator(from_name)]


def _one_or_stages(value: object) -> str:
    return "[stages]" if _is_pipeline(value) else "[one]"


def _is_pipeline(value: object) -> bool:
    return isinstance(value, list | tuple)


#: One algorithm, or the stages of a pipeline; in brackets what errors do not mention.
Algorithm_ = Annotated[
    Annotated[Component_, Tag("[one]")]
    | Annotated[tuple[Component_, ...], Field(min_length=1), Tag("[stages]")],
    Discriminator(_one_or_stages),
]


class Recipe(Options):
    """One run: what to fuse, how, and where it goes (phase one: shape only)."""

    model_config = ConfigDict(**{**STRICT, "arbitrary_types_allowed": True})

    algorithm: Algorithm_ = Choice()
    """How to fuse: a name, a mapping with `name` and options, or a list of these: the stages of a
    pipeline; a run needs one."""
    model_pool: Component_ = Choice()
    """What to fuse; default: the pool that is installed as the default one."""
    task_pool: Component_ = Choice()
    """What to evaluate on, and what adaptive algorithms see; default: the model pool's own."""
    executor: Component_ = Choice()
    """What merges run on; default: threads. It changes nothing of the model and is not recorded."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Everything random derives from it."""
    output: OutputOptions = OutputOptions()
    alignment: AlignmentPolicy = AlignmentPolicy()

    @property
    def stages(self) -> tuple[Choice, ...]:
        """The stages of the pipeline, one for an algorithm alone."""
        return self.algorithm if isinstance(self.algorithm, tuple) else (self.algorithm,)


def choice_of(value: Any) -> Choice:  # noqa: ANN401 - YAML holds anything
    """Read a component's section: a name, or a mapping with `name` and options."""
    return validated(Choice, from_name(value))


def stages_in(value: Any) -> list[Any]:  # noqa: ANN401
    """Return what the section `algorithm` says of each stage: names, mappings, objects."""
    return list(value) if _is_pipeline(value) else [value]


def choices_of(value: Any) -> tuple[Choice, ...]:  # noqa: ANN401
    """Read the section `algorithm`: one, or the stages of a pipeline, in which there are some."""
    stages = stages_in(value)
    if not stages:
        raise RecipeError("algorithm = []: a pipeline has stages")
    return tuple(map(choice_of, stages))
