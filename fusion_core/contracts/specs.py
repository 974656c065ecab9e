"""Specs: frozen descriptions of components, which plugins register.

A spec names its class and its configuration as `"module:attribute"` strings. Neither is imported
before a run needs it, so listing plugins is fast however heavy they are. This module imports only
the standard library.
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

#: The task data that a method needs.
TaskData = Literal["none", "unlabeled", "labeled"]
#: The dominant cost of a method, from the cheapest; `COSTS` describes each.
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
    """A kind of pipeline stage, with the texts of listings and examples."""

    #: the base class of its methods, as "module:attribute"
    base: str
    heading: str
    #: a pipeline that works, with `{}` in place of the method's name
    example: str
    #: whether its methods receive task vectors, which require a base
    needs_base: bool = False


#: The kinds of stages, in their order in a pipeline.
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
    """The description of a component; the base class of all specs.

    Raises `ValueError` for a name that is not kebab-case, or a target that is not
    `module:attribute`.
    """

    kind: ClassVar[str] = "component"
    #: the required base classes of `target` and `config`, as "module:attribute"
    base: ClassVar[str] = "builtins:object"
    config_base: ClassVar[str] = "fusion_core.recipe.config:ComponentConfig"
    #: whether `target` may be a factory function instead of a class
    takes_functions: ClassVar[bool] = False

    #: in kebab-case
    name: str
    #: one line for listings
    summary: str
    #: the class, as "module:attribute"
    target: str
    #: its `ComponentConfig`, as "module:attribute"; the module must not import torch
    config: str
    aliases: tuple[str, ...] = ()
    #: the names under which its options may ask for trust (`ComponentConfig.needs_trust`)
    trust: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (self.name, *self.aliases, *self.trust):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{self.kind} name {name!r} is not kebab-case")
        for target in (self.target, self.config):
            if not _TARGET.fullmatch(target):
                raise ValueError(
                    f"{self.kind} {self.name!r}: expected 'module:attribute', got {target!r}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmSpec(ComponentSpec):
    """The spec of a fusion method: a transform, a merge or a calibration.

    Example::

        from fusion_core import AlgorithmSpec, hookimpl

        @hookimpl
        def fusion_register_algorithms():
            yield AlgorithmSpec(
                name="drop-and-average",
                summary="Average task vectors without their small entries.",
                target="my_plugin.drop:DropAndAverage",
                config="my_plugin.config:DropConfig",
                needs_base=True,
                cost="stream",
            )
    """

    kind: ClassVar[str] = "algorithm"

    #: the kind of stage, a key of `STAGES`
    stage: str = "merge"
    #: the heading in listings; default: the plugin's name
    family: str | None = None
    #: the formula in one line: W_k is an expert, tau_k = W_k - base, tau the merged task vector
    formula: str | None = None
    needs_base: bool = False
    needs_tasks: TaskData = "none"
    #: an option that, if set, makes tasks unnecessary
    needs_tasks_unless: str | None = None
    #: further requirements on tasks, in one line
    task_requirements: str | None = None
    #: whether tasks have weights or adapters of their own, so that inference needs the task
    needs_task: bool = False
    #: the file with modules that the model's class lacks, such as routers; `run` saves it
    modules_file: str | None = None
    #: "module:function", called with a live model and the opened file: adds the modules
    add_modules: str | None = None
    #: whether the order of the experts matters
    ordered: bool = False
    min_experts: int = 1
    max_experts: int | None = None
    #: the dominant cost with default options
    cost: Cost | None = None
    #: the publication, e.g. "arXiv:2306.01708"
    reference: str | None = None
    #: arguments of `fuse run` in the example of `fuse info`; default: those of the default pool
    example: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ComponentSpec.__post_init__(self)  # super() fails: slots=True creates a new class
        for known, word in (
            (tuple(STAGES), self.stage),
            (get_args(TaskData), self.needs_tasks),
            ((*COSTS, None), self.cost),
        ):
            if word not in known:
                words = ", ".join(filter(None, known))
                raise ValueError(f"algorithm {self.name!r}: expected one of {words}, got {word!r}")
        if (self.modules_file is None) != (self.add_modules is None):
            raise ValueError(
                f"algorithm {self.name!r}: modules_file and add_modules belong together"
            )
        if STAGES[self.stage].needs_base:
            object.__setattr__(self, "needs_base", True)

    @property
    def uses_tasks(self) -> bool:
        """Whether it reads tasks."""
        return self.needs_tasks != "none"

    @property
    def takes_overrides(self) -> bool:
        """Whether its options may differ by tensor: not if it searches once or saves one file."""
        return not (self.uses_tasks or self.needs_task or self.modules_file)

    @property
    def base(self) -> str:  # type: ignore[override] # depends on the stage
        """The required base class of `target`."""
        return STAGES[self.stage].base


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpec(ComponentSpec):
    """The spec of a named pipeline: several stages that run like one algorithm.

    Its options are those of its stages, each under the stage's name. Raises `ValueError` without
    stages, or for two stages of one name. Example::

        from fusion_core import PipelineSpec, hookimpl

        @hookimpl
        def fusion_register_pipelines():
            yield PipelineSpec(
                name="trimmed-sum",
                summary="Trim task vectors, then add them to the base.",
                stages=(("trim", {"density": 0.5}), ("task-arithmetic", {"scale": 0.7})),
            )
    """

    kind: ClassVar[str] = "pipeline"

    #: names of algorithms in order, each with the options that differ from its defaults
    stages: tuple[tuple[str, Mapping[str, Any]], ...]
    #: the publication, e.g. "arXiv:2306.01708"
    reference: str | None = None
    #: a pipeline has no class and no configuration of its own
    target: str = field(default=ComponentSpec.base, init=False)
    config: str = field(default=ComponentSpec.config_base, init=False)

    def __post_init__(self) -> None:
        ComponentSpec.__post_init__(self)
        names = [name for name, _ in self.stages]
        if not names or len({*names}) < len(names):
            raise ValueError(f"pipeline {self.name!r} needs stages of different names, got {names}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec(ComponentSpec):
    """The fields that specs of model pools and of task pools share."""

    #: whether it works without network access
    offline: bool = False
    #: the tasks' names if they do not depend on options, for listings and completion
    tasks: tuple[str, ...] = ()
    #: the licence, or where to find it
    licence: str | None = None
    #: the publication to cite
    citation: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPoolSpec(PoolSpec):
    """The spec of a `ModelPool`."""

    kind: ClassVar[str] = "model pool"
    base: ClassVar[str] = "fusion_core.contracts.model_pool:ModelPool"

    #: the task pool of runs that name none
    default_task_pool: str | None = None
    #: the task pool of runs that name none and whose method needs unlabeled data, if it differs
    unlabeled_task_pool: str | None = None
    #: options that the default task pool takes over unless they are set there
    shared_options: tuple[str, ...] = ()
    #: the bytes of models that a first run downloads
    download_bytes: int | None = None
    #: whether `fuse run` uses this pool if the recipe names none
    default: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPoolSpec(PoolSpec):
    """The spec of a `TaskPool`."""

    kind: ClassVar[str] = "task pool"
    base: ClassVar[str] = "fusion_core.contracts.task_pool:TaskPool"

    #: the bytes of decoded examples of the default tasks that a first run keeps
    decoded_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSpec(ComponentSpec):
    """The spec of an executor: a class or function that makes a `concurrent.futures.Executor`.

    Work is submitted as picklable calls, unless the executor is a `ThreadPoolExecutor` or has an
    attribute `in_process = True`. An executor of other processes may use several machines, unless
    it is a `ProcessPoolExecutor` or has an attribute `one_machine = True`. An attribute `slots`
    holds the number of units that it runs at once.
    """

    kind: ClassVar[str] = "executor"
    base: ClassVar[str] = "concurrent.futures:Executor"
    takes_functions: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatSpec(ComponentSpec):
    """The spec of a file format: a class or function that makes a `WeightSource` of files.

    It is called with the model's `Location` and, if the files hold differences, the base. The
    format claims a directory that contains one of `files` and, if `config_keys` are given, a
    `config.json` with one of these keys, whose value has the entries `config_values`. Claims are
    checked without importing the target.
    """

    kind: ClassVar[str] = "format"
    base: ClassVar[str] = "fusion_core.weights.source:WeightSource"
    takes_functions: ClassVar[bool] = True

    #: a format has no options
    config: str = field(default=ComponentSpec.config_base, init=False)
    #: names or patterns (`*.npz`) of files that identify the format
    files: tuple[str, ...]
    #: keys of `config.json` that describe how the files are written; merges are written without
    config_keys: tuple[str, ...] = ()
    #: entries that the value of such a key has, if it is an object: `(("quant_method", "fp8"),)`
    config_values: tuple[tuple[str, str], ...] = ()
    #: whether the files hold differences from a base, as adapters do
    is_delta: bool = False
    #: the JSON file and the key in it that name this base, to suggest it where it is missing
    base_key: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        ComponentSpec.__post_init__(self)
        for field_name in ("files", "config_keys"):
            names = getattr(self, field_name)
            if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"format {self.name!r}: expected a tuple of names as {field_name}")
        if not self.files:
            raise ValueError(f"format {self.name!r}: expected at least one name in files")
        if self.config_values and not self.config_keys:
            raise ValueError(f"format {self.name!r}: config_values are entries of config_keys")
        if self.base_key is not None and not self.is_delta:
            raise ValueError(f"format {self.name!r}: base_key needs is_delta")
        for pattern in self.files:
            if not pattern or pattern.startswith("/") or ".." in pattern.split("/"):
                raise ValueError(f"format {self.name!r}: {pattern!r} is not the name of a file")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSpec(ComponentSpec):
    """The spec of a form in which a run writes its merge; `output.NAME` of a recipe asks for it.

    Its value in the recipe is a mapping of options, or the value of `main_option`.
    """

    kind: ClassVar[str] = "output"
    base: ClassVar[str] = "fusion_core.contracts.output:OutputEncoder"

    #: the option that a plain value sets: with `rank`, `output.adapter: 8` is `{rank: 8}`
    main_option: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSpec(ComponentSpec):
    """The spec of a `CompiledFunction`, which replaces functions of methods or of the engine."""

    kind: ClassVar[str] = "kernel"
    base: ClassVar[str] = "fusion_core.weights.merging.compiled:CompiledFunction"

    #: a kernel has no options
    config: str = field(default=ComponentSpec.config_base, init=False)
    #: the functions that it replaces, as "module:qualified.name"
    replaces: tuple[str, ...]
    #: the number of elements of all models from which it saves more time than it takes to load
    least_elements: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSpec(ComponentSpec):
    """The spec of a command of `fuse`: a function for Typer, or a Typer app.

    The target is imported when the command is called; help and completion use the summary.
    """

    kind: ClassVar[str] = "command"
    takes_functions: ClassVar[bool] = True

    #: a command's options are its flags
    config: str = field(default=ComponentSpec.config_base, init=False)
    #: the heading in `fuse --help`
    group: str = "Commands"


def load_target(target: str) -> Any:  # noqa: ANN401 - whatever the plugin put there
    """Import the object that a `"module:attribute"` string names."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
