"""The task pool `lm-eval`: tasks of lm-evaluation-harness, measured in a process of their own."""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fusion_core import Metric, Progress, Task, TaskPool, noting, unknown_task
from fusion_core.commands import Subject
from fusion_core.errors import RecipeError
from pools_lm.beside import has_chat_template
from pools_lm.config import HarnessConfig
from pools_lm.harness.loadable import loadable
from pools_lm.harness.process import Harness
from pools_lm.pools import CausalPool, Seq2SeqPool
from pools_lm.written import has_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from fusion_core import Metrics, ModelPool
    from fusion_core.weights import Files

    Json = Mapping[str, Any]

#: What lies between 0 and 1 in every task of the harness; an F1 is in percent in some.
_FRACTIONS = re.compile(r"acc|acc_\w+|\w+_acc|exact_match")
_STDERR = "_stderr"
_UNITS = {"bits_per_byte": "bits per byte"}


class HarnessTasks(TaskPool[HarnessConfig]):
    """Tasks that the harness knows, by its names; a group is one task, with the group's figure."""

    config_class = HarnessConfig

    def __init__(self, config: HarnessConfig) -> None:
        super().__init__(config)
        self.names = list(dict.fromkeys(config.tasks))
        if config.limit is not None:
            self.measured_on = f"the first {config.limit} examples of each task"
        if config.include_path is not None and not Path(config.include_path).is_dir():
            raise RecipeError(
                f"task_pool.include_path: there is no folder {config.include_path}",
                hint="Name the folder that holds the YAML files of your tasks.",
            )
        self._harness = Harness(config.python)
        self._models: ModelPool[Any] | None = None
        #: what was measured last of each task, as the harness says it
        self._measured: dict[str, Json] = {}

    def __getitem__(self, name: str) -> HarnessTask:
        """Return one task; raises `RecipeError` for one that was not named in the options."""
        if name not in self.names:
            raise unknown_task(name, self.names, "task_pool.tasks")
        return HarnessTask(name, self, self._measured.get(name))

    def bind(self, pool: ModelPool[Any]) -> Self:
        """Return these tasks for some models, which must be such as write text."""
        if not isinstance(pool, CausalPool | Seq2SeqPool):
            raise RecipeError(
                f"lm-eval measures models that write text, and {type(pool).__name__} has others",
                hint="Use the model pool causal-lm or seq2seq-lm.",
            )
        bound = type(self)(self.config)
        bound._models = pool  # noqa: SLF001 - of this class
        return bound

    def check(self) -> None:
        """Ask the harness whether it is there and knows the tasks.

        Raises `PluginError` where it is not, `RecipeError` for what it does not know, or does not
        measure as one task.
        """
        self._check_models()
        for name, known in self._known["tasks"].items():
            _check_entry(name, known, self.config.main.get(name))

    def _check_models(self) -> None:
        if self._models is None:
            return
        if not has_tokenizer(self._assets):
            raise RecipeError(
                "lm-eval needs a tokenizer, and there is none beside the models",
                hint="Put one beside the base's weights.",
            )
        if self.config.apply_chat_template and not has_chat_template(self._assets):
            raise RecipeError(
                "task_pool.apply_chat_template: the models' tokenizer has no chat template",
                hint="Leave it out, or put a chat_template.jinja beside the base.",
            )

    def identity(self, name: str) -> Json | None:
        """Identify a task by its data and configuration, the harness, and the models' own files.

        None where the task's data cannot be told: on the hub while that cannot be reached.
        """
        known = self._known["tasks"][name]
        if not known.get("data") or None in known["data"]:
            return None
        options = self.config.model_dump(mode="json", exclude={"tasks", "main", "python"})
        return {
            "harness": self._known["versions"],
            "task": known,
            "options": {**options, "main": self.config.main.get(name)},
            "include_path": self._included,
            "beside": self._beside,
        }

    def measure(
        self,
        subject: Subject,
        tasks: Sequence[str] | None = None,
        *,
        label: str = "evaluate",
        progress: Progress | None = None,
    ) -> dict[str, Metrics]:
        """Measure a model's directory; a model that has none is written to a temporary one."""
        names = self.names if tasks is None else list(tasks)
        track = (progress or Progress()).track(label, total=len(names))
        base = None if self._models is None else self._models.base
        with (
            track as advance,
            noting(advance),
            loadable(subject, base, self._assets) as directory,
        ):
            done = self._harness.done(self._request(subject, names, directory), measured=advance)
        versions = done["versions"]
        self._measured |= {n: {**each, "versions": versions} for n, each in done["tasks"].items()}
        return {name: dict(self._metrics(name)) for name in names}

    def _request(self, subject: Subject, names: Sequence[str], directory: Path) -> Json:
        options = self.config.model_dump(exclude={"tasks", "main", "python"})
        device = subject.device or next(subject.model.parameters()).device
        own = {"tasks": names, "device": self.config.device or str(device)}
        return {**options, **own, "do": "measure", "model": str(directory.absolute())}

    def _metrics(self, name: str) -> Iterator[tuple[str, float]]:
        """Yield the figures of a task, the main one first."""
        values = {_named(key): each for key, each in self._measured[name]["values"].items()}
        first = self.config.main.get(name, next(iter(values)))
        if first not in values:
            raise RecipeError(
                f"task_pool.main: task {name!r} has no metric {first!r}",
                hint=f"It has: {', '.join(key for key in values if _STDERR not in key)}.",
            )
        yield first, values.pop(first)
        yield from values.items()

    @cached_property
    def _known(self) -> Json:
        named = list(dict.fromkeys([*self.names, *self.config.main]))
        asked = self.config.model_dump(include={"include_path", "device"})
        return self._harness.done({"do": "describe", "tasks": named, **asked})

    @cached_property
    def _assets(self) -> Files:
        return {} if self._models is None else self._models.assets()

    @property
    def _included(self) -> Mapping[str, list[int]]:
        """The files of one's own tasks, by size and time."""
        root = self.config.include_path
        found = [] if root is None else [path for path in Path(root).rglob("*") if path.is_file()]
        return {str(each): [each.stat().st_size, each.stat().st_mtime_ns] for each in sorted(found)}

    @cached_property
    def _beside(self) -> Mapping[str, Mapping[str, str]]:
        """What lies beside each model's weights: directories are measured with their own files."""
        pool = self._models
        if not isinstance(pool, CausalPool | Seq2SeqPool):
            return {}
        return {
            model: {name: _digest(content) for name, content in pool.files_of(model).items()}
            for model in pool.by_name
        }


class HarnessTask(Task):
    """One task, or group, of the harness."""

    def __init__(self, name: str, pool: HarnessTasks, measured: Json | None) -> None:
        self.name = name
        self._pool = pool
        if measured is None:
            return
        better = measured["higher_is_better"]
        self.metrics = [_metric(_named(key), better) for key in measured["values"]]
        self.conditions = {
            **{key: measured[key] for key in ("version", "num_fewshot", "examples", "seeds")},
            "apply_chat_template": pool.config.apply_chat_template,
            "batch_size": pool.config.batch_size,
            "dtype": pool.config.dtype,
            "versions": measured["versions"],
        }

    def evaluate(self, model: nn.Module) -> Metrics:
        """Measure a live model, which is saved for it."""
        return self._pool.measure(Subject.of(model), [self.name])[self.name]


def _named(key: str) -> str:
    """Return a metric's name: what the answer was filtered by stays where there are several."""
    return key.removesuffix(",none")


def _metric(name: str, higher_is_better: Mapping[str, bool | None]) -> Metric:
    own = name.partition(",")[0]
    what = own.removesuffix(_STDERR)
    unit = "fraction" if _FRACTIONS.fullmatch(what) else _UNITS.get(what, "")
    return Metric(
        name, unit, higher_is_better=own == what and higher_is_better.get(what) is not False
    )


def _check_entry(name: str, known: Json, main: str | None) -> None:
    match known:
        case {"kind": "unknown", "close": close}:
            near = f"There is: {', '.join(close)}." if close else "List them: lm-eval ls tasks"
            hint = f"{near}\nTasks of your own are read from task_pool.include_path."
            raise RecipeError(f"lm-eval knows no task {name!r}", hint=hint)
        case {"kind": "tag" | "group", "metrics": [], "members": members}:
            raise RecipeError(
                f"{name!r} stands for several tasks, and has no figure of its own",
                hint=f"Name them in task_pool.tasks: {', '.join(members)}",
            )
        case {"missing": [each, *_]}:
            raise RecipeError(
                f"task {name!r}: its data is not there: {each}",
                hint="Put it there, or change the task's data_files.",
            )
        case {"unsafe": [each, *_]}:
            raise RecipeError(
                f"task {each!r} runs code that models write",
                hint="Measure it by lm-eval itself, where that can do no harm.",
            )
    listed = known["metrics"]
    if main is not None and listed and main.partition(",")[0] not in listed:
        hint = f"It has: {', '.join(listed)}."
        raise RecipeError(f"task_pool.main: task {name!r} has no metric {main!r}", hint=hint)


def _digest(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
