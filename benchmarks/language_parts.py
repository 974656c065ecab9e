"""Experts of the study on language models, the tasks that measure them, and their merges."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from language_cases import POOLS, RANKS, SEARCH, STEPS, Cell
from language_general import General
from language_prompts import TEACHING
from language_rivals import DistilledAdapter
from real_lm_experts import write_base, write_data, write_expert
from safetensors.torch import load_file, save_file
from study_parts import Distilled

from fusion_adamerging.adamerging import AdaMerging
from fusion_core import RunContext
from fusion_core.recipe.config import AlignmentPolicy
from fusion_core.weights import Linear, StateDictSource
from fusion_linear.task_arithmetic import TaskArithmetic
from fusion_regmean.featcal import FeatCal
from fusion_spectral.disentangle import Disentangle
from fusion_spectral.doge import Doge
from fusion_spectral.iso import IsoCts, Isotropise
from fusion_spectral.orthogonalise import Orthogonalise
from fusion_ties.ties import Ties
from pools_lm.config import LanguageConfig
from pools_lm.pools import CausalPool
from pools_lm.tasks.config import LanguageTasksConfig
from pools_lm.tasks.pool import LanguageTasks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from fusion_core import ModelPool
    from fusion_core.weights import WeightSource

#: The name of the task that the base teaches.
GENERAL = "general"
#: Prompts of a task that each seed has for itself.
_PER_SEED = 64
#: Merges of the weights alone, by method.
WITHOUT_DATA: dict[str, Any] = {
    "task-arithmetic": TaskArithmetic,
    "ties": Ties,
    "doge": Doge,
    "iso-cts": IsoCts,
}
#: What searches start from the sum of, by the transform's name.
STARTS: dict[str, Any] = {"orthogonalise": Orthogonalise, "isotropise": Isotropise}
#: What learns from the experts, by method.
SEARCHES: dict[str, Any] = {
    "strong": AdaMerging,
    "all weights": Distilled,
    "one adapter": DistilledAdapter,
}


class Vectors(StateDictSource):
    """Task vectors in memory."""

    is_delta = True


@dataclass
class Experts:
    """The experts of a pool and a seed, trained if they are missing; the base is in `source`."""

    source: Path
    directory: Path
    pool: str
    seed: int

    def __post_init__(self) -> None:
        self.names = POOLS[self.pool]
        base, self._data = self.directory / "base", write_data(self.directory, self.names)
        if not base.is_dir():
            write_base(self.source, self.directory)
        self.models = self._trained({name: (name,) for name in self.names})
        self.tasks = self._bound_tasks(Cell("base"))
        self.general = General(self.models, self.directory)

    def measure(self, weights: WeightSource, names: tuple[str, ...]) -> dict[str, Any]:
        """Return a model's right answers per task, and its comparison with the base."""
        with batches_on_all_cores():
            model = self.models.build(weights)
            general = self.general.measure(model)
            model.to(torch.bfloat16)
            right = {name: self._right(model, name) for name in names}
        return {"right": right, "general": general}

    def merge(self, cell: Cell, seconds: dict[str, float]) -> WeightSource:
        """Return a cell's merge; add the processor time of its parts to `seconds`.

        `objectives` is then that of each step of a search, on the unlabeled prompts.
        """
        with _timed(seconds, "prompts"), batches_on_all_cores():
            tasks = self._bound_tasks(cell)
            prepared = tasks.prepare(torch.device("cpu"), lambda *_: None)
        self.objectives: list[float] = []
        context = RunContext(
            tasks=prepared,
            seed=self.seed,
            on_metrics=lambda _, metrics: self.objectives.append(next(iter(metrics.values()))),
        )
        merged = self._merged(cell, context, seconds)
        if not cell.calibrated:
            return merged
        with _timed(seconds, "calibration"):
            return FeatCal(samples=cell.prompts).calibrate(merged, self.models, context)

    def _merged(self, cell: Cell, context: RunContext, seconds: dict[str, float]) -> WeightSource:
        match cell.method:
            case "base":
                assert self.models.base is not None
                return self.models.base
            case method if method in WITHOUT_DATA:
                return WITHOUT_DATA[method](**cell.options).run(self.models, context)
            case "joint training":
                name = f"{self.pool} together"
                return self._trained({name: self.names}).experts[name]
            case "tsv-m":
                scale = cell.options.get("scale", 1.0)
                orthogonal = self._transformed("orthogonalise")
                return context.merge(orthogonal, Linear((scale,) * len(self.names)))
            case "sum":
                with _timed(seconds, "choice"):
                    models = self._disentangled(context)
                return context.merge(models, Linear((1.0,) * len(self.names)))
        start = 0.0 if cell.method == "one adapter" else 1.0
        options = {"preset": "strong", "init": start, **SEARCH, **cell.options}
        if cell.general:
            options["retain"] = [GENERAL]
        with _timed(seconds, "start"):
            models = self._start(cell, context)
        with _timed(seconds, "search"):
            return SEARCHES[cell.method](**options).run(models, context)

    def _start(self, cell: Cell, context: RunContext) -> ModelPool[Any]:
        """Return the models that a search starts from."""
        if cell.start == "disentangle":
            return self._disentangled(context)
        return self.models if cell.start is None else self._transformed(cell.start)

    def _disentangled(self, context: RunContext) -> ModelPool[Any]:
        """Return the models after `disentangle`; the context then has its choice."""
        stage = Disentangle().fit(self.models, context)
        context.transforms = ({"name": "disentangle", **stage.config.model_dump()},)
        return context.transform(self.models, stage)

    def _transformed(self, transform: str) -> ModelPool[Any]:
        """Return the experts after a transform. A file keeps their task vectors."""
        file = self.directory / f"{transform}-{self.pool}-{self.seed}.safetensors"
        if not file.is_file():
            transformed = RunContext().transform(self.models, STARTS[transform]()).experts
            names = list(next(iter(transformed.values())).infos)
            vectors = {
                f"{expert}/{name}": source.tensor(name).clone()
                for name in names
                for expert, source in transformed.items()
            }
            save_file(vectors, file)
        vectors = load_file(file)
        parts: dict[str, dict[str, torch.Tensor]] = {expert: {} for expert in self.names}
        for key, tensor in vectors.items():
            expert, _, name = key.partition("/")
            parts[expert][name] = tensor
        return self.models.transformed({name: Vectors(part) for name, part in parts.items()})

    def _trained(self, experts: Mapping[str, tuple[str, ...]]) -> ModelPool[Any]:
        """Return experts of one or more tasks each; train those that are missing.

        An expert of more tasks has as many steps as their own experts together.
        """
        rank, base = RANKS[self.pool], self.directory / "base"
        folder = self.directory / f"rank-{rank or 'full'}" / str(self.seed)
        for name, tasks in experts.items():
            if not (folder / name).is_dir():
                datasets = [self._data["datasets"][task] for task in tasks]
                steps = sum(STEPS.get(task, 20) for task in tasks)
                how: Any = {"steps": steps, "seed": self.seed, "rank": rank}
                write_expert(name, datasets, base, folder / name, **how)
        models = {name: str(folder / name) for name in experts}
        pool = CausalPool(LanguageConfig(base=str(base), models=models))
        return pool.aligned(AlignmentPolicy())

    def _right(self, model: nn.Module, name: str) -> str:
        """Return one character per test question: 1 for a right answer."""
        measured: Any = self.tasks[name].evaluate(model)
        return "".join(str(int(outcome)) for outcome in measured.outcomes)

    def _bound_tasks(self, cell: Cell) -> LanguageTasks:
        """Return the tasks with a cell's unlabeled prompts, bound to the models."""
        datasets = self._datasets(cell)
        if cell.general:
            path = self._write_prompts(GENERAL, TEACHING[: cell.general])
            datasets[GENERAL] = {"kind": "agreement", "test": path, "unlabeled": path}
        config = LanguageTasksConfig(
            datasets=datasets,
            dtype="bfloat16",
            batch_size=50,
            prompts=cell.writer if cell.writer in {"experts", "base"} else "own",
            sampled=max(cell.prompts, 1),
            sampling_seed=self.seed,
        )
        return LanguageTasks(config).bind(self.models)

    def _datasets(self, cell: Cell) -> dict[str, Any]:
        """Return the tasks' options, with a cell's unlabeled prompts unless models write them."""
        if cell.writer in {"another task", "general"}:
            return {name: self._foreign_dataset(name, cell) for name in self.names}
        datasets: dict[str, Any] = {}
        for name, data in self._data["datasets"].items():
            lines = self._lines(name)[: max(cell.prompts, 1)]
            datasets[name] = {**data, "unlabeled": self._write(f"{name}-own", lines)}
        return datasets

    def _foreign_dataset(self, name: str, cell: Cell) -> dict[str, Any]:
        """Return a task's options, with prompts of the task before it or general ones."""
        data, before = self._data["datasets"][name], self.names[self.names.index(name) - 1]
        general = cell.writer == "general"
        texts = TEACHING if general else [*map(_read_question, self._lines(before))]
        path = self._write_prompts(f"{name}-foreign", texts[: cell.prompts])
        options = {key: data[key] for key in ("system", "max_tokens") if key in data}
        return {"kind": "generate", "max_tokens": 16, **options, "test": path, "unlabeled": path}

    def _lines(self, name: str) -> list[str]:
        """Return a task's unlabeled prompts, beginning with those of the seed."""
        lines = (self.directory / f"{name}-unlabeled.jsonl").read_text().splitlines()
        first = _PER_SEED * self.seed
        return lines[first:] + lines[:first]

    def _write_prompts(self, name: str, texts: Sequence[str]) -> str:
        return self._write(name, [json.dumps({"prompt": text}) for text in texts])

    def _write(self, name: str, lines: list[str]) -> str:
        path = self.directory / f"{name}.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines))
        return str(path)


def _read_question(line: str) -> str:
    """Return what a task asks, as text."""
    asked = json.loads(line)
    return str(asked.get("prompt") or asked["question"])


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.process_time()
    yield
    seconds[name] = round(time.process_time() - started, 1)


@contextmanager
def batches_on_all_cores() -> Iterator[None]:
    """Give every core batches of its own, which changes no result.

    Elsewhere one core runs the study: operations that all cores share wait for other programs.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(1)
