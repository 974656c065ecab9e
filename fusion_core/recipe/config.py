"""Recipes and options as pydantic models. They describe the shape and know no component.

Nothing heavy is imported here: configuration classes live in modules without torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
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
from fusion_core.recipe.paths import resolve_path
from fusion_core.recipe.text import spell_out
from fusion_core.recipe.validation import STRICT, Options, validate

#: The prefix of the text that stands for a live object in a recipe.
LIVE = "<live "


def _if_path(read: Callable[[Any], str]) -> BeforeValidator:
    return BeforeValidator(
        lambda value: read(value) if isinstance(value, str | os.PathLike) else value
    )


class ComponentConfig(Options):
    """The options of a component. They are frozen, and unknown names are errors.

    The docstring below a field is its description in `fuse info`, `--help` and the JSON schema. A
    class with `presets` declares an option `preset`. The named preset sets the options that are not
    given, and `fuse info` shows what each preset sets.
    """

    #: the options that each preset sets, by its name
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:  # noqa: ANN401 - whatever the recipe holds
        if not isinstance(values, Mapping):
            return values
        name = values.get("preset")
        preset = cls.presets.get(name, {}) if isinstance(name, str) else {}
        return {**preset, **values}

    def identity(self) -> dict[str, Any]:
        """Return the options as JSON data with absolute paths, to compare them between commands."""
        return self.model_dump(mode="json", context=Path("/"))

    def needs_trust(self) -> Mapping[str, str]:
        """Return the reasons why these options can run code, by the names that allow it.

        Examples are starting a program, importing files, and unpickling another machine's data. The
        names are those of the spec's `trust`. A reason reads "start the program ./x". Constructors
        must not start or connect to anything: the run first asks for the user's trust. Default: no
        reasons.
        """
        return {}


class Choice(BaseModel):
    """A component's name and its options, not yet validated."""

    model_config = ConfigDict(extra="allow", frozen=True, arbitrary_types_allowed=True)

    name: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})

    def with_default_name(self, name: str | None) -> Choice:
        """Return this choice, with `name` as the name if it has none."""
        if self.name is not None or name is None:
            return self
        return Choice(name=name, **self.options)


#: Other names of dtypes. Recipes record the names on the right.
_DTYPES = {
    "fp64": "float64",
    "double": "float64",
    "fp32": "float32",
    "float": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
}

Dtype = Annotated[
    Literal["float64", "float32", "float16", "bfloat16"],
    BeforeValidator(lambda name: _DTYPES.get(name, name) if isinstance(name, str) else name),
    WithJsonSchema({"enum": ["float64", "float32", "float16", "bfloat16", *_DTYPES]}),
]


class OutputOptions(Options):
    """The place and form of the merged model."""

    path: Annotated[str, _if_path(resolve_path)] | None = None
    """The directory to write; default: outputs/<pool>-<algorithm>-<n>. With null, nothing is
    written and the merge stays in memory."""
    dtype: Dtype | None = None
    """The dtype of floating-point tensors, such as float32, fp16 or bf16; default: the base's."""
    shard_size: Annotated[ByteSize, Field(gt=0, lt=2**63)] = ByteSize(5_000_000_000)
    """The maximum size of one file's tensors, e.g. 5GB. A larger tensor gets a file of its own."""
    licence: Annotated[str, Field(min_length=1)] | None = None
    """The licence of the merged model, for its model card; default: worked out from the models'."""

    @property
    def is_none(self) -> bool:
        """Whether the path is explicitly null, so that nothing is written."""
        return self.path is None and "path" in self.model_fields_set


class OutputSection(OutputOptions):
    """The section `output`: its options, and the form of the output by name."""

    model_config = ConfigDict(extra="allow")

    @property
    def forms(self) -> dict[str, Any]:
        """The options of forms that plugins provide, such as `adapter`, not yet validated."""
        return dict(self.model_extra or {})


class Lock(Options):
    """The inputs that a locked recipe accepts. `fuse lock` writes this section."""

    commits: Mapping[str, str] = {}
    """The commits of repositories on the hub, by reference, such as `org/name@main`."""
    files: Mapping[str, Mapping[str, str]] = {}
    """The SHA-256 of every file of every model, by the names of model and file."""
    tasks: Mapping[str, Any] = {}
    """The identity of each task's data, such as the SHA-256 of its files."""


class AlignmentPolicy(Options):
    """The policies for differences between experts and the base. None is guessed."""

    missing: Literal["error", "base"] = "error"
    """A tensor that an expert lacks: fail, or take the base's."""
    extra: Literal["error", "drop"] = "error"
    """A tensor that only an expert has: fail, or leave it out."""
    dtype: Literal["error", "promote"] = "promote"
    """Different dtypes: fail, or compute in the wider one."""
    config: Literal["error", "warn", "ignore"] = "error"
    """Configurations that make a merge meaningless (rope, heads, labels): fail, warn or ignore."""
    tokenizer: Literal["error", "warn", "ignore"] = "error"
    """Tokenizers that give one id to different tokens: fail, warn or ignore."""
    vocab: Literal["error", "pad"] = "error"
    """Embeddings of different vocabulary sizes: fail, or pad all to the largest."""
    nan: Literal["error", "allow"] = "error"
    """NaN or infinity in the weights: fail, or allow it."""
    outliers: Literal["error", "allow"] = "error"
    """A merged tensor with an entry more than 1000 times as far from the base as the largest entry
    of its task vectors: fail, or allow it."""
    matrices: Literal["separate", "stored"] = "separate"
    """Tensors that hold several matrices, such as fused projections: merge each matrix by itself,
    or the tensors as they are stored."""


Component_ = Annotated[Choice, BeforeValidator(spell_out)]


def _is_pipeline(value: object) -> bool:
    return isinstance(value, list | tuple)


#: One algorithm, or the stages of a pipeline. Errors leave out the tags in brackets.
Algorithm_ = Annotated[
    Annotated[Component_, Tag("[one]")]
    | Annotated[tuple[Component_, ...], Field(min_length=1), Tag("[stages]")],
    Discriminator(lambda value: "[stages]" if _is_pipeline(value) else "[one]"),
]


class Recipe(Options):
    """One run: the models to fuse, the method, and the output. Only the shape is checked here."""

    model_config = ConfigDict(**{**STRICT, "arbitrary_types_allowed": True})

    algorithm: Algorithm_ = Choice()
    """The method: a name, a mapping with `name` and options, or a list of these as the stages of a
    pipeline. Every run needs one."""
    model_pool: Component_ = Choice()
    """The models to fuse; default: the installed default pool."""
    task_pool: Component_ = Choice()
    """The tasks for evaluation and for adaptive algorithms; default: the model pool's own."""
    executor: Component_ = Choice()
    """The executor that merges run on; default: threads. It does not change the model and is not
    recorded."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """The seed of all randomness."""
    output: OutputSection = OutputSection()
    """The location and form of the merged model."""
    alignment: AlignmentPolicy = AlignmentPolicy()
    """The differences between models that are allowed."""
    lock: Lock = Lock()
    """The commits and hashes of the inputs. A run that finds others fails before it merges."""

    @property
    def stages(self) -> tuple[Choice, ...]:
        """The stages of the pipeline. A single algorithm is one stage."""
        return self.algorithm if isinstance(self.algorithm, tuple) else (self.algorithm,)


def choice_of(value: Any) -> Choice:  # noqa: ANN401 - YAML holds anything
    """Read a component's section: a name, or a mapping with `name` and options."""
    return validate(Choice, spell_out(value))


def stages_in(value: Any) -> list[Any]:  # noqa: ANN401
    """Return the stages in the section `algorithm` as they are: names, mappings, objects."""
    return list(value) if _is_pipeline(value) else [value]


def choices_of(value: Any) -> tuple[Choice, ...]:  # noqa: ANN401
    """Read the section `algorithm`: one algorithm, or the stages of a pipeline."""
    stages = stages_in(value)
    if not stages:
        raise RecipeError("algorithm = []: expected at least one stage")
    return tuple(map(choice_of, stages))
