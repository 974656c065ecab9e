"""The task pool `lm-eval`: tasks of lm-evaluation-harness, evaluated in a separate process."""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fusion_core import Metric, Progress, Task, TaskPool, show_notes_on, unknown_task
from fusion_core.commands import Subject
from fusion_core.errors import RecipeError
from fusion_core.files import hash_files
from pools_lm.config import HarnessConfig
from pools_lm.harness.export import model_directory
from pools_lm.harness.process import Harness
from pools_lm.pools import CausalPool, Seq2SeqPool
from pools_lm.side_files import has_chat_template
from pools_lm.tokenizer_files import has_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from fusion_core import MetricValues, ModelPool
    from fusion_core.weights import Files

    Json = Mapping[str, Any]

#: Metrics that are between 0 and 1 in every task of the harness. Some tasks give F1 in percent.
_FRACTIONS = re.compile(r"acc|acc_\w+|\w+_acc|exact_match")
_STDERR = "_stderr"
_UNITS = {"bits_per_byte": "bits per byte"}


class HarnessTasks(TaskPool[HarnessConfig]):
    """Tasks of the harness by name. A group is one task, with the group's aggregate score."""

    config_class = HarnessConfig

    def __init__(self, config: HarnessConfig) -> None:
        super().__init__(config)
        self.names = list(dict.fromkeys(config.tasks))
        if config.limit is not None:
            self.measured_on = f"the first {config.limit} examples of each task"
        if config.include_path is not None and not Path(config.include_path).is_dir():
            raise RecipeError(
                f"task_pool.include_path: expected a directory: {config.include_path}",
                hint="Name the directory that contains the YAML files of your tasks.",
            )
        self._harness = Harness(config.python)
        self._models: ModelPool[Any] | None = None
        #: the harness's last result per task
        self._results: dict[str, Json] = {}

    def __getitem__(self, name: str) -> HarnessTask:
        """Return one task; raises `RecipeError` for a task that the options do not name."""
        if name not in self.names:
            raise unknown_task(name, self.names, "task_pool.tasks")
        return HarnessTask(name, self, self._results.get(name))

    def bind(self, pool: ModelPool[Any]) -> Self:
        """Return these tasks for a pool's models, which must be able to write text."""
        if not isinstance(pool, CausalPool | Seq2SeqPool):
            raise RecipeError(
                f"lm-eval needs models that write text; those of a {type(pool).__name__} do not",
                hint="Use the model pool causal-lm or seq2seq-lm.",
            )
        bound = type(self)(self.config)
        bound._models = pool  # noqa: SLF001 - of this class
        return bound

    def check(self) -> None:
        """Check the models' side files, that the harness is installed, and that it has the tasks.

        Raises `PluginError` without a harness, and `RecipeError` for an unknown task or one without
        a single score.
        """
        if self._models is not None:
            if not has_tokenizer(self._assets):
                raise RecipeError(
                    "lm-eval needs a tokenizer, but the models have none",
                    hint="Copy one next to the base's weights.",
                )
            if self.config.apply_chat_template and not has_chat_template(self._assets):
                raise RecipeError(
                    "task_pool.apply_chat_template: the models' tokenizer has no chat template",
                    hint="Remove the option, or save a chat_template.jinja next to the base.",
                )
        for name, entry in self._description["tasks"].items():
            _check_entry(name, entry, self.config.main.get(name))

    def identity(self, name: str) -> Json | None:
        """Identify a task by its data and configuration, the harness, and the models' side files.

        Return None if the data cannot be identified, as for hub data without a connection.
        """
        entry = self._description["tasks"][name]
        if not entry.get("data") or None in entry["data"]:
            return None
        excluded = {"tasks", "main", "python"}
        options = {k: v for k, v in self.config.identity().items() if k not in excluded}
        return {
            "harness": self._description["versions"],
            "task": entry,
            "options": {**options, "main": self.config.main.get(name)},
            "include_path": self._included_files,
            "beside": self._side_files,
        }

    def inputs(self) -> Json:
        """Identify each task's data by commits and hashes, and its configuration by a digest.

        A task on data of the hub is left out without a connection.
        """
        entries = {name: self._description["tasks"][name] for name in self.names}
        return {
            name: {"task": entry["digest"], **_describe_data(entry["data"])}
            for name, entry in entries.items()
            if entry.get("data") and None not in entry["data"]
        }

    def measure(
        self,
        subject: Subject,
        tasks: Sequence[str] | None = None,
        *,
        label: str = "evaluate",
        progress: Progress | None = None,
    ) -> dict[str, MetricValues]:
        """Evaluate a model's directory; a model without one is exported to a temporary one."""
        names = self.names if tasks is None else list(tasks)
        track = (progress or Progress()).track(label, total=len(names))
        base = None if self._models is None else self._models.base
        with (
            track as advance,
            show_notes_on(advance),
            model_directory(subject, base, self._assets) as directory,
        ):
            device = subject.device or next(subject.model.parameters()).device
            request = {
                **self.config.model_dump(exclude={"tasks", "main", "python"}),
                "tasks": names,
                "device": self.config.device or str(device),
                "do": "measure",
                "model": str(directory.absolute()),
            }
            answer = self._harness.request(request, task_finished=advance)
        versions = answer["versions"]
        for name, result in answer["tasks"].items():
            self._results[name] = {**result, "versions": versions}
        return {name: dict(self._metrics(name)) for name in names}

    def _metrics(self, name: str) -> Iterator[tuple[str, float]]:
        """Yield a task's metrics, the main one first."""
        values = {_metric_name(key): value for key, value in self._results[name]["values"].items()}
        main = self.config.main.get(name, next(iter(values)))
        if main not in values:
            raise RecipeError(
                f"task_pool.main: unknown metric {main!r} of task {name!r}",
                hint=f"Metrics: {', '.join(key for key in values if _STDERR not in key)}.",
            )
        yield main, values.pop(main)
        yield from values.items()

    @cached_property
    def _description(self) -> Json:
        names = list(dict.fromkeys([*self.names, *self.config.main]))
        options = self.config.model_dump(include={"include_path", "device"})
        return self._harness.request({"do": "describe", "tasks": names, **options})

    @cached_property
    def _assets(self) -> Files:
        return {} if self._models is None else self._models.assets()

    @property
    def _included_files(self) -> Mapping[str, list[int]]:
        """The files of the user's own tasks, by size and time."""
        if self.config.include_path is None:
            return {}
        root = Path(self.config.include_path)
        stats = {str(path): path.stat() for path in sorted(root.rglob("*")) if path.is_file()}
        return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}

    @cached_property
    def _side_files(self) -> Mapping[str, Mapping[str, str]]:
        """Digests of each model's side files, which the harness reads from its directory."""
        pool = self._models
        if not isinstance(pool, CausalPool | Seq2SeqPool):
            return {}
        return {
            model: {name: _digest(content) for name, content in pool.files_of(model).items()}
            for model in pool.by_name
        }


class HarnessTask(Task):
    """One task, or group, of the harness."""

    def __init__(self, name: str, pool: HarnessTasks, result: Json | None) -> None:
        self.name = name
        self._pool = pool
        if result is None:
            return
        better = result["higher_is_better"]
        self.metrics = [_make_metric(_metric_name(key), better) for key in result["values"]]
        self.conditions = {
            **{key: result[key] for key in ("version", "num_fewshot", "examples", "seeds")},
            "apply_chat_template": pool.config.apply_chat_template,
            "batch_size": pool.config.batch_size,
            "dtype": pool.config.dtype,
            "versions": result["versions"],
        }

    def evaluate(self, model: nn.Module) -> MetricValues:
        """Evaluate a live model, which is exported first."""
        return self._pool.measure(Subject.of(model), [self.name])[self.name]


def _metric_name(key: str) -> str:
    """Return a metric's name. The name of an answer filter stays, unless there is none."""
    return key.removesuffix(",none")


def _make_metric(name: str, higher_is_better: Mapping[str, bool | None]) -> Metric:
    unfiltered = name.partition(",")[0]
    value_name = unfiltered.removesuffix(_STDERR)
    is_stderr = unfiltered != value_name
    unit = "fraction" if _FRACTIONS.fullmatch(value_name) else _UNITS.get(value_name, "")
    is_better = not is_stderr and higher_is_better.get(value_name) is not False
    return Metric(name, unit, higher_is_better=is_better)


def _check_entry(name: str, entry: Json, main: str | None) -> None:
    match entry:
        case {"kind": "unknown", "close": close}:
            near = f"Similar names: {', '.join(close)}." if close else "List them: lm-eval ls tasks"
            raise RecipeError(
                f"unknown lm-eval task {name!r}",
                hint=f"{near}\nYour own tasks are read from task_pool.include_path.",
            )
        case {"kind": "tag" | "group", "metrics": [], "members": members}:
            raise RecipeError(
                f"{name!r} is a list of tasks without an aggregate score",
                hint=f"Name its tasks in task_pool.tasks: {', '.join(members)}",
            )
        case {"missing": [path, *_]}:
            raise RecipeError(
                f"task {name!r}: missing data file: {path}",
                hint="Create it, or change the task's data_files.",
            )
        case {"unsafe": [task, *_]}:
            raise RecipeError(
                f"task {task!r} runs code that models write",
                hint="Run it with lm-eval itself, in a sandbox.",
            )
    metrics = entry["metrics"]
    if main is not None and metrics and main.partition(",")[0] not in metrics:
        raise RecipeError(
            f"task_pool.main: unknown metric {main!r} of task {name!r}",
            hint=f"Metrics: {', '.join(metrics)}.",
        )


def _describe_data(data: Sequence[Json]) -> Json:
    """Return the data sets of a task at their commits, and the hashes of its local files."""
    on_hub = [part for part in data if "data_set" in part]
    local = [path for part in data if "data_set" not in part for path in part]
    return {
        "data": sorted({f"{part['data_set']}@{part['commit']}" for part in on_hub}),
        "files": hash_files(local),
    }


def _digest(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
