"""The pipeline: recipe -> pools and algorithm -> lazy merge -> model directory -> report.

`run_fusion` is what the command line calls, and what Python programs call: there is no other way.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fusion_core import hub, provenance
from fusion_core.algorithm import Algorithm, RunContext
from fusion_core.config import Choice, choice_of, resolve, resolve_component
from fusion_core.errors import BrokenPluginError, FusionError, RecipeError
from fusion_core.evaluation import RECIPE, device_of, evaluate, sees_tasks, write_report
from fusion_core.model_pool import ModelPool
from fusion_core.plugins import load_plugins
from fusion_core.progress import Progress
from fusion_core.recipes import dump_yaml, load_recipe
from fusion_core.specs import AlgorithmSpec
from fusion_core.task_pool import Report, TaskPool
from fusion_core.weights import (
    CastSource,
    CheckpointSource,
    StateDictSource,
    WeightSource,
    as_weights,
    materialise,
    staged,
)
from fusion_core.weights.writer import check_output

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Executor

    from fusion_core.config import Resolved, ResolvedRecipe
    from fusion_core.plugins import PluginManager

OUTPUTS = Path("outputs")
PROVENANCE = "provenance.json"

_SECTIONS: dict[str, type[Any]] = {
    "algorithm": Algorithm,
    "model_pool": ModelPool,
    "task_pool": TaskPool,
}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out: nothing here changes the model that comes out."""

    evaluate: bool = True
    overwrite: bool = False
    device: str = "cpu"
    executor: str = "threads"
    workers: int | None = None
    progress: Progress = field(default_factory=Progress)
    block: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RunInfo:
    """What life-cycle hooks learn about a run."""

    #: the resolved recipe, defaults included
    recipe: Mapping[str, Any]
    #: where the model goes; None for a run that writes nothing
    path: Path | None


@dataclass(frozen=True)
class RunResult:
    """What a run made."""

    pool: ModelPool[Any]
    #: the merged weights: in memory, or those of the directory written
    weights: WeightSource
    #: the directory, None for a run that wrote nothing
    path: Path | None
    #: what the tasks measured, None if there were none
    report: Report | None
    #: what the algorithm saved beside the model, by file name
    side_files: Mapping[str, bytes]

    @cached_property
    def model(self) -> nn.Module:
        """The merged model, live."""
        return self.pool.build(self.weights)


@dataclass(frozen=True)
class Plan:
    """A run that is ready: everything is validated and instantiated, nothing is computed."""

    resolved: ResolvedRecipe
    plugins: PluginManager
    options: RunOptions
    algorithm: Algorithm[Any]
    pool: ModelPool[Any]
    tasks: TaskPool[Any] | None
    path: Path | None
    device: torch.device

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe: every default written out, the output's place left out."""
        sections = {
            "algorithm": _section(self.resolved.algorithm, self.algorithm),
            "model_pool": _section(self.resolved.model_pool, self.pool),
        }
        if self.tasks is not None:
            sections["task_pool"] = _section(self.resolved.task_pool, self.tasks)
        rest = self.resolved.recipe.model_dump(
            mode="json", include={"seed", "output", "alignment"}, exclude={"output": {"path"}}
        )
        return {**sections, **rest}

    @property
    def algorithm_name(self) -> str:
        """What to call the result."""
        return _algorithm_name(self.resolved)

    @property
    def adapts(self) -> bool:
        """Whether the algorithm sees tasks; one given as an object may."""
        outer = self.resolved.algorithm
        return outer is None or sees_tasks(outer.component.spec)

    @property
    def distributions(self) -> set[str]:
        """The plugins that this run uses."""
        found = (self.resolved.algorithm, self.resolved.model_pool, self.resolved.task_pool)
        return {each.component.plugin.distribution for each in found if each is not None}


def run_fusion(  # noqa: PLR0913 - the sections of a recipe, and how to run it
    recipe: Mapping[str, Any] | str | Path | None = None,
    *,
    algorithm: Any = None,  # noqa: ANN401 - a name, a mapping or an object
    model_pool: Any = None,  # noqa: ANN401
    task_pool: Any = None,  # noqa: ANN401
    seed: int | None = None,
    output: Mapping[str, Any] | str | Path | None = None,
    options: RunOptions | None = None,
) -> RunResult:
    """Fuse models, write the result, and evaluate it.

    `recipe` is a mapping or a file; the other arguments override its sections. `algorithm`,
    `model_pool` and `task_pool` are names, mappings of a name and options, or objects; a model pool
    may also be `{"base": ..., "models": {...}}` of live modules, state dicts or paths. A pool of
    live models writes nothing unless `output` names a path.

    Raises a `FusionError` for everything that its caller can mend; nothing is left half-written.
    """
    sections = {"algorithm": algorithm, "model_pool": model_pool, "task_pool": task_pool}
    raw = dict(load_recipe(recipe) if isinstance(recipe, str | Path) else recipe or {})
    raw |= {name: value for name, value in sections.items() if value is not None}
    if seed is not None:
        raw["seed"] = seed
    if output is not None:
        raw["output"] = {"path": str(output)} if isinstance(output, str | Path) else dict(output)
    return execute(plan(raw, options or RunOptions()))


def plan(raw: Mapping[str, Any], options: RunOptions) -> Plan:
    """Validate a recipe and instantiate its components; weights are not read, only headers."""
    plugins = load_plugins(options.block)
    live = {name: raw[name] for name, kind in _SECTIONS.items() if isinstance(raw.get(name), kind)}
    shaped = {**raw, **{name: {} for name in live}}
    resolved = resolve(shaped, plugins, live=frozenset(live))
    device = device_of(options.device)
    if resolved.recipe.output.path is not None:  # before anything is downloaded
        check_output(Path(resolved.recipe.output.path), overwrite=options.overwrite)
    with hub.session(options.progress):
        algorithm = live.get("algorithm", _created(resolved.algorithm))
        pool = live.get("model_pool", _created(resolved.model_pool))
        tasks = live.get("task_pool", _created(resolved.task_pool))
    _check_needs(resolved.algorithm, pool, tasks)
    path = _output_path(resolved, pool)
    if path is not None:
        check_output(path, overwrite=options.overwrite)
    return Plan(resolved, plugins, options, algorithm, pool, tasks, path, device)


def execute(plan: Plan) -> RunResult:
    """Carry a plan out: merge, commit, evaluate."""
    info = RunInfo(plan.recipe, plan.path)
    plan.plugins.notify("fusion_run_started", run=info)
    with hub.session(plan.options.progress), _executor(plan) as executor:
        pool = plan.pool.aligned(plan.resolved.recipe.alignment)
        context = _context(plan, info, executor)
        started = time.perf_counter()
        fused = _as_source(plan.algorithm.run(pool, context), pool)
        weights = _rounded(fused, pool, plan)
        if plan.path is None:
            weights.prepare(executor)
            written: WeightSource = StateDictSource(weights.state_dict(), label="the merge")
        else:
            _write(plan, plan.path, pool, weights, context, started)
            written = CheckpointSource(plan.path)
    result = RunResult(pool, written, plan.path, None, context.side_files)
    if plan.tasks is not None and plan.options.evaluate:
        result = replace(result, report=_evaluated(plan, result))
    plan.plugins.notify("fusion_run_finished", run=info, result=result)
    return result


def _write(  # noqa: PLR0913, PLR0917 - what is written, where, and since when
    plan: Plan,
    path: Path,
    pool: ModelPool[Any],
    weights: WeightSource,
    context: RunContext,
    started: float,
) -> None:
    """Write the model directory: all of it, or nothing; `pool` is the aligned one."""
    output = plan.resolved.recipe.output
    with staged(path, overwrite=plan.options.overwrite) as staging:
        materialise(
            weights,
            staging,
            shard_size=output.shard_size,
            executor=context.executor,
            progress=plan.options.progress,
        )
        assets = pool.assets(dtype=_dtype(output.dtype))
        for name, content in {**assets, **context.side_files}.items():
            staging.add(name, content)
        staging.add(RECIPE, dump_yaml(plan.recipe).encode())
        seconds = round(time.perf_counter() - started, 3)
        timings = {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": seconds}
        staging.add(PROVENANCE, _provenance(plan, pool, weights, staging.directory, timings))
        staging.commit(overwrite=plan.options.overwrite)


def _provenance(
    plan: Plan,
    pool: ModelPool[Any],
    weights: WeightSource,
    directory: Path,
    timings: Mapping[str, Any],
) -> bytes:
    parts = {
        **provenance.environment(plan.distributions, plan.plugins.plugins, plan.device),
        "inputs": plan.pool.inputs(),
        "tensors": provenance.counts(pool, weights),
        "outputs": provenance.outputs(directory),
    }
    return json.dumps(provenance.statement(parts, timings), indent=2).encode() + b"\n"


def _evaluated(plan: Plan, result: RunResult) -> Report:
    """Evaluate what was made; a failure leaves a committed model where it is and says so."""
    assert plan.tasks is not None  # noqa: S101 - the caller looked
    try:
        report = evaluate(
            result.pool,
            plan.tasks,
            result.weights,
            device=plan.device,
            progress=plan.options.progress,
            transductive=plan.tasks.transductive if plan.adapts else None,
        )
        if result.path is not None:
            write_report(report, result.path)
    except Exception as error:
        if result.path is None:
            raise
        raise FusionError(
            f"the model is complete in {result.path}, but its evaluation failed: {error}",
            hint=f"Try again with: fuse evaluate {result.path}",
        ) from error
    return report


def _context(plan: Plan, info: RunInfo, executor: Executor) -> RunContext:
    def on_metrics(step: int, metrics: Mapping[str, float]) -> None:
        plan.plugins.notify("fusion_metrics_logged", run=info, step=step, metrics=metrics)

    def algorithm(of: Any) -> Algorithm[Any]:  # noqa: ANN401 - a name or a mapping
        choice: Choice = choice_of(of)
        inner = resolve_component(AlgorithmSpec, choice, plan.plugins, section="algorithm.of")
        created: Algorithm[Any] = inner.create()
        return created

    return RunContext(
        tasks=plan.tasks if plan.adapts else None,
        seed=plan.resolved.recipe.seed,
        device=plan.device,
        executor=executor,
        progress=plan.options.progress,
        finite=plan.resolved.recipe.alignment.nan == "error",
        algorithm=algorithm,
        on_metrics=on_metrics,
    )


def _check_needs(
    algorithm: Resolved[AlgorithmSpec] | None, pool: ModelPool[Any], tasks: TaskPool[Any] | None
) -> None:
    if algorithm is None:
        return
    spec, count = algorithm.component.spec, len(pool.experts)
    if spec.needs_base and pool.base is None:
        raise RecipeError(
            f"algorithm {spec.name!r} needs a base, and the model pool has none",
            hint="Name the model that the experts were fine-tuned from: model_pool.base.",
        )
    if sees_tasks(spec) and tasks is None:
        raise RecipeError(
            f"algorithm {spec.name!r} needs tasks with {spec.needs_tasks} data, and there are none",
            hint="Name a task pool with --task-pool; see: fuse list tasks",
        )
    if count < spec.min_experts or count > (spec.max_experts or count):
        raise RecipeError(
            f"algorithm {spec.name!r} takes {_range(spec)} experts, the model pool has {count}",
            hint="Name them under model_pool.models.",
        )


def _range(spec: AlgorithmSpec) -> str:
    if spec.max_experts is None:
        return f"at least {spec.min_experts}"
    return f"{spec.min_experts} to {spec.max_experts}"


def _algorithm_name(resolved: ResolvedRecipe) -> str:
    return resolved.algorithm.name if resolved.algorithm else "fused"


def _created(resolved: Resolved[Any] | None) -> Any:  # noqa: ANN401 - an algorithm or a pool
    return None if resolved is None else resolved.create()


def _section(resolved: Resolved[Any] | None, instance: Any) -> dict[str, Any]:  # noqa: ANN401
    if resolved is not None:
        return resolved.as_recipe()
    kind = type(instance)
    return {
        "name": f"{kind.__module__}:{kind.__qualname__}",
        **instance.config.model_dump(mode="json"),
    }


def _output_path(resolved: ResolvedRecipe, pool: ModelPool[Any]) -> Path | None:
    given = resolved.recipe.output.path
    if given is not None:
        return Path(given)
    live = any(isinstance(each, StateDictSource) for each in (pool.base, *pool.experts.values()))
    if resolved.model_pool is None or live:
        return None
    stem = f"{resolved.model_pool.name}-{_algorithm_name(resolved)}"
    numbers = range(1, 10**6)
    return next(path for n in numbers if not (path := OUTPUTS / f"{stem}-{n}").exists())


def _as_source(fused: WeightSource | nn.Module, pool: ModelPool[Any]) -> WeightSource:
    """Read an algorithm's result, which may be a live model, by the pool's tensor names.

    Raises `BrokenPluginError` for a result with other names or shapes than the pool's models.
    """
    expected = pool.reference.infos
    if isinstance(fused, nn.Module):
        fused = _live_source(fused, pool)
    wrong = [*fused.infos.keys() ^ expected.keys()] or [
        name for name, info in expected.items() if fused.infos[name].shape != info.shape
    ]
    if wrong:
        raise BrokenPluginError(
            f"the algorithm returned other tensors than its models have: {len(wrong)}, "
            f"among them {min(wrong)!r}"
        )
    return as_weights(fused, pool.base)


def _live_source(module: nn.Module, pool: ModelPool[Any]) -> WeightSource:
    """Read a live model's parameters and buffers; integers that it does not name are copied."""
    named = {**dict(module.named_buffers(remove_duplicate=False)), **pool.parameters(module)}
    live = {n: value.detach().cpu() for n, value in named.items() if n in pool.reference.infos}
    for name, info in pool.reference.infos.items():
        if name not in live and not info.dtype.is_floating_point:
            live[name] = pool.reference.tensor(name)
    return StateDictSource(live, label="the fused model")


def _rounded(fused: WeightSource, pool: ModelPool[Any], plan: Plan) -> WeightSource:
    """Give every tensor the dtype to be stored in: the recipe's, or the base's."""
    output = _dtype(plan.resolved.recipe.output.dtype)
    infos = {
        name: replace(info, dtype=output)
        if output is not None and info.dtype.is_floating_point
        else info
        for name, info in pool.reference.infos.items()
    }
    return CastSource(fused, infos, finite=plan.resolved.recipe.alignment.nan == "error")


@contextmanager
def _executor(plan: Plan) -> Iterator[Executor]:
    workers = plan.options.workers
    options = {} if workers is None else {"workers": str(workers)}
    executor = plan.plugins.create_executor(plan.options.executor, options)
    with executor:
        yield executor


def _dtype(name: str | None) -> torch.dtype | None:
    found: torch.dtype | None = None if name is None else getattr(torch, name)
    return found
