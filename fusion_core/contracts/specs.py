"""What a plugin registers: frozen descriptions of components, cheap to make and to list.

A spec names its class and its configuration as `"module:attribute"` strings. Neither is imported
before a run needs it, so `fuse list-plugins` costs nothing however heavy the plugins are. This
module knows the standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

TaskData = Literal["none", "unlabeled", "labeled"]
#: what the time of a method goes into, from the cheapest on; `COSTS` says what is meant
Cost = Literal["stream", "passes", "matrices", "forward", "backward"]

COSTS: dict[Cost, str] = {
    "stream": "one pass over the files",
    "passes": "several passes over the files",
    "matrices": "decompositions or products of whole matrices",
    "forward": "examples through models",
    "backward": "gradients of examples through models",
}


@dataclass(frozen=True, slots=True)
class StageKind:
    """A kind of stage, and how listings and examples show its methods."""

    #: the class that its methods subclass, as "module:attribute"
    base: str
    heading: str
    #: a pipeline that a method of this kind works in
    example: str
    #: whether its methods see task vectors, and so need a base
    needs_base: bool = False


#: The kinds of stages, in the order in which they stand in a pipeline.
STAGES: dict[str, StageKind] = {
    "transform": StageKind(
        "fusion_core.contracts.stage:Transform",
        "transforms, before a merge",
        "{},task-arithmetic",
        needs_base=True,
    ),
    "merge": StageKind("fusion_core.contracts.algorithm:Algorithm", "merges", "{}"),
    "calibrate": StageKind(
        "fusion_core.contracts.stage:Calibration",
        "calibrations, after a merge",
        "task-arithmetic,{}",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentSpec:
    """One component of a plugin.

    Raises `ValueError` if a name is not kebab-case or a target is not `module:attribute`.
    """

    kind: ClassVar[str] = "component"
    #: what the class is one of, and its configuration; text, as those are, since both are heavy
    base: ClassVar[str] = "builtins:object"
    config_base: ClassVar[str] = "fusion_core.recipe.config:ComponentConfig"
    #: whether a function that makes one may stand in the class's place
    takes_functions: ClassVar[bool] = False

    #: kebab-case
    name: str
    #: one line, shown in listings
    summary: str
    #: the class, as "module:attribute"
    target: str
    #: its configuration (a `ComponentConfig`), as "module:attribute" of a module without torch
    config: str
    aliases: tuple[str, ...] = ()
    #: the names under which its configuration may ask for trust (`ComponentConfig.needs_trust`)
    trust: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (self.name, *self.aliases, *self.trust):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{self.kind} name {name!r} is not kebab-case")
        for target in (self.target, self.config):
            if not _TARGET.fullmatch(target):
                raise ValueError(f"{self.kind} {self.name!r}: {target!r} is not 'module:attribute'")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmSpec(ComponentSpec):
    """A way of fusing models."""

    kind: ClassVar[str] = "algorithm"

    #: its kind in a pipeline, a key of `STAGES`
    stage: str = "merge"
    #: the heading that listings show it under; without one, its plugin's name
    family: str | None = None
    #: what it computes, in one line: W_k is an expert, tau_k = W_k - base, tau a merge's
    formula: str | None = None
    needs_base: bool = False
    needs_tasks: TaskData = "none"
    #: an option with which, given, it does without them
    needs_tasks_unless: str | None = None
    #: what it requires of tasks besides their data, in one line
    task_requirements: str | None = None
    #: whether each task has something for itself beside the model, so that using it needs the task
    needs_task: bool = False
    #: whether experts have roles, so that another order is another merge
    ordered: bool = False
    min_experts: int = 1
    max_experts: int | None = None
    #: what its time goes into, with its default options
    cost: Cost | None = None
    #: where it was published, e.g. "arXiv:2306.01708"
    reference: str | None = None

    def __post_init__(self) -> None:
        ComponentSpec.__post_init__(self)  # super() has lost its class where there are slots
        for known, word in (
            (tuple(STAGES), self.stage),
            (get_args(TaskData), self.needs_tasks),
            ((*COSTS, None), self.cost),
        ):
            if word not in known:
                words = ", ".join(filter(None, known))
                raise ValueError(f"algorithm {self.name!r}: {word!r} is none of: {words}")
        if STAGES[self.stage].needs_base:
            object.__setattr__(self, "needs_base", True)

    @property
    def base(self) -> str:  # type: ignore[override] # the one kind whose classes differ
        """The class of its stage."""
        return STAGES[self.stage].base


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpec(ComponentSpec):
    """A pipeline under one name: stages, each the name of an algorithm with some of its options.

    It is configured and run like an algorithm. Its options are those of its stages, each under the
    stage's name. Raises `ValueError` for no stages, or two of one name.
    """

    kind: ClassVar[str] = "pipeline"

    #: the algorithms by name, in their order, with the options that differ from their defaults
    stages: tuple[tuple[str, Mapping[str, Any]], ...]
    #: where it was published, e.g. "arXiv:2306.01708"
    reference: str | None = None
    #: its stages are what it runs
    target: str = field(default=ComponentSpec.base, init=False)
    config: str = field(default=ComponentSpec.config_base, init=False)

    def __post_init__(self) -> None:
        ComponentSpec.__post_init__(self)
        names = [name for name, _ in self.stages]
        if not names or len({*names}) < len(names):
            raise ValueError(f"pipeline {self.name!r} needs stages of different names, got {names}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec(ComponentSpec):
    """What pools of either kind say of themselves."""

    #: works without any network
    offline: bool = False
    #: the tasks' names, where they do not depend on options (for listings and completion)
    tasks: tuple[str, ...] = ()
    #: under which terms, or where they stand
    licence: str | None = None
    #: what to cite
    citation: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPoolSpec(PoolSpec):
    """A base, its experts, and how to build a live model of their kind."""

    kind: ClassVar[str] = "model pool"
    base: ClassVar[str] = "fusion_core.contracts.model_pool:ModelPool"

    #: the task pool that a run uses when it names none
    default_task_pool: str | None = None
    #: options that this task pool has too, and takes over from here where they are not given
    shared_options: tuple[str, ...] = ()
    #: what a first run downloads of models
    download_bytes: int | None = None
    #: used by `fuse run` without a pool
    default: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPoolSpec(PoolSpec):
    """Tasks: data, heads and metrics."""

    kind: ClassVar[str] = "task pool"
    base: ClassVar[str] = "fusion_core.contracts.task_pool:TaskPool"

    #: what a first run keeps of the default tasks' examples, decoded
    decoded_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSpec(ComponentSpec):
    """What merges run on: a class or function that makes an `Executor` of its configuration.

    What is submitted is picklable, unless the executor is a `ThreadPoolExecutor` or has an
    attribute `in_process` that is true. One of other processes is taken to reach other machines
    unless it is a `ProcessPoolExecutor` or has an attribute `one_machine` that is true; an
    attribute `slots` says how many units it runs at once.
    """

    kind: ClassVar[str] = "executor"
    base: ClassVar[str] = "concurrent.futures:Executor"
    takes_functions: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatSpec(ComponentSpec):
    """What a model's files may be written in: a class that makes a `WeightSource` of them.

    It is called with the model's `Location` and, for differences, the base that they belong to; a
    function will do, too. Which models it is for is data, looked at without importing it: one of
    `files` is there and, where `config_keys` are given, `config.json` has one of them.
    """

    kind: ClassVar[str] = "format"
    base: ClassVar[str] = "fusion_core.weights.source:WeightSource"
    takes_functions: ClassVar[bool] = True

    #: a format has no options
    config: str = field(default=ComponentSpec.config_base, init=False)
    #: names or patterns (`*.npz`) of files by which a model is known
    files: tuple[str, ...]
    #: keys of `config.json` that tell how the files are written; a merge's configuration lacks them
    config_keys: tuple[str, ...] = ()
    #: whether the files hold differences from a base, as adapters do
    is_delta: bool = False

    def __post_init__(self) -> None:
        ComponentSpec.__post_init__(self)
        for field_name in ("files", "config_keys"):
            given = getattr(self, field_name)
            if not isinstance(given, tuple) or not all(isinstance(each, str) for each in given):
                raise ValueError(f"format {self.name!r}: expected a tuple of names as {field_name}")
        if not self.files:
            raise ValueError(f"format {self.name!r}: expected at least one name in files")
        for pattern in self.files:
            if not pattern or pattern.startswith("/") or ".." in pattern.split("/"):
                raise ValueError(f"format {self.name!r}: {pattern!r} is not the name of a file")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSpec(ComponentSpec):
    """A command of `fuse`: a function as Typer takes it, or a Typer app.

    It is imported when the command is called; help and completion show the summary.
    """

    kind: ClassVar[str] = "command"
    takes_functions: ClassVar[bool] = True

    #: a command's options are its flags
    config: str = field(default=ComponentSpec.config_base, init=False)
    #: the heading that `fuse --help` shows it under
    group: str = "Commands"


def load_target(target: str) -> Any:  # noqa: ANN401 - whatever the plugin put there
    """Import what a `"module:attribute"` string names."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
