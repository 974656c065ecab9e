"""The model directory of a run: opened, described before any work is done, written, committed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fusion_core.errors import OutputError, RecipeError
from fusion_core.machine.memory import peak_memory
from fusion_core.machine.ranks import helps
from fusion_core.planning.dtypes import dtype_of
from fusion_core.planning.numbers import unfinished
from fusion_core.planning.planned import count_tensors
from fusion_core.recipe.paths import without_folders
from fusion_core.recipe.text import RECIPE, dump_yaml
from fusion_core.running import _provenance as provenance
from fusion_core.weights import (
    CheckpointSource,
    Staging,
    WeightSource,
    held_in_memory,
    materialise,
    nearness,
)
from fusion_core.weights.reading.containment import reading
from fusion_core.weights.source import origins
from fusion_core.weights.writing._serialised import serialised
from fusion_core.weights.writing.outputs import claim, staging_in
from fusion_core.weights.writing.target import PROVENANCE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.planning.planned import Plan

_log = logging.getLogger(__name__)

Assets = Mapping[str, bytes | Path]


def _inputs(plan: Plan) -> dict[str, Any]:
    """Identify what goes into a run: models, and tasks' data that has a name."""
    tasks = plan.tasks_read
    data = {} if tasks is None else tasks.inputs()
    return {"inputs": plan.pool.inputs(), **({"tasks": data} if data else {})}


@contextmanager
def claim_output(plan: Plan) -> Iterator[Plan]:
    """Keep other runs from a run's output; yields the plan with that path.

    Where none was named, it is the first number that no other run has taken.
    """
    with ExitStack() as stack:
        if plan.path is None or helps():
            yield plan
        elif plan.resolved.recipe.output.path is not None:
            stack.enter_context(claim(plan.path, overwrite=plan.options.overwrite))
            yield plan
        else:
            path = next(path for path in plan.free_paths() if _try_claim(path, stack))
            _tell_of_work(plan)
            yield plan if path == plan.path else replace(plan, path=path)


def _tell_of_work(plan: Plan) -> None:
    if not plan.options.resume and (left := unfinished(plan.recipe)):
        _log.warning("%s holds work of a run like this: --resume would go on with it", left[0].path)


def _try_claim(path: Path, stack: ExitStack) -> bool:
    try:
        stack.enter_context(claim(path))
    except OutputError:
        return False
    return True


@contextmanager
def open_staging(plan: Plan) -> Iterator[Staging | None]:
    """Open the staging directory of a claimed output; None for a run that writes nothing."""
    if plan.path is None:
        if plan.options.resume:
            raise RecipeError(
                "a merge in memory cannot be resumed: it leaves no work behind",
                hint="Leave --resume out, or name an output.",
            )
        yield None
        return
    described = _describe(plan)
    if plan.options.resume and described is None:
        raise RecipeError(
            "a run with models in memory cannot be resumed: nothing tells them apart",
            hint="Leave --resume out, or save the models and name their directories.",
        )
    options = plan.options
    if options.overwrite:
        _check_spares(plan.path, plan.pool.by_name.values())
    with staging_in(
        plan.path, overwrite=options.overwrite, plan=described, resume=options.resume
    ) as staging:
        yield staging


def _check_spares(output: Path, sources: Iterable[WeightSource]) -> None:
    """Raise `OutputError` if replacing a directory would remove what is merged."""
    found = (origin for source in sources for origin in origins(source))
    for path in (path for origin in found for path in origin.stamps):
        if _lies_in(path.parent, output):
            raise OutputError(
                f"output {output} holds {path.parent}, which is merged and would be removed",
                hint="Write elsewhere with -o.",
            )


def _lies_in(path: Path, directory: Path) -> bool:
    return path.resolve().is_relative_to(directory.resolve())


def _describe(plan: Plan) -> bytes | None:
    """Return it as text, the same for the same run."""
    parts = describe_run(plan)
    if parts is None:
        return None
    return json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()


def describe_run(plan: Plan) -> dict[str, Any] | None:
    """Say in full what a run does, before it does it, as JSON's data: what `--resume` goes by.

    The resolved recipe, and of `provenance.json` the inputs, versions, machine and device. None if
    that cannot be told from files: some models are in memory.
    """
    if any(map(held_in_memory, plan.pool.by_name.values())):
        return None
    return {"recipe": plan.recipe, **_inputs(plan), **_environment(plan)}


def assets_of(plan: Plan, pool: ModelPool[Any]) -> Assets:
    """Return a pool's side files before any work is done; raises `CheckpointError` for bad ones."""
    given = pool.assets(dtype=dtype_of(plan.resolved.recipe.output.dtype))
    assets = plan.outline_of(pool).files(given)
    for content in assets.values():
        if isinstance(content, Path):
            with reading(content):
                content.open("rb").close()
    return assets


def write(  # noqa: PLR0913, PLR0917 - what is written, where, and since when
    plan: Plan,
    staging: Staging,
    pool: ModelPool[Any],
    assets: Assets,
    weights: WeightSource,
    context: RunContext,
    started: float,
) -> list[str]:
    """Write the model directory: all of it, or nothing; `pool` is the aligned one.

    Returns warnings of what came out.
    """
    output = plan.resolved.recipe.output
    materialise(
        weights,
        staging,
        shard_size=output.shard_size,
        executor=context.executor,
        progress=plan.options.progress,
    )
    written = CheckpointSource(staging.directory)
    warnings = [*context.warnings, *near_models(plan, pool, written)]
    for name, content in {**assets, **context.side_files}.items():
        if isinstance(content, WeightSource):
            staging.add(name, serialised(content, context.executor))
        else:
            staging.add(name, content)
    staging.add(RECIPE, dump_yaml(plan.recipe_in(plan.path)).encode())
    seconds = round(time.perf_counter() - started, 3)
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    timings = {"finished": finished, "seconds": seconds, "peak_memory": peak_memory()}
    parts = {
        **_described(plan, pool, weights),
        "warnings": [*plan.warnings, *warnings],
        "outputs": provenance.outputs(staging),
    }
    statement = json.dumps(provenance.statement(parts, timings), indent=2)
    staging.add(PROVENANCE, statement.encode() + b"\n")
    pool.check_unchanged()
    staging.commit(overwrite=plan.options.overwrite)
    return warnings


def near_models(plan: Plan, pool: ModelPool[Any], merged: WeightSource) -> list[str]:
    """Return a warning for each model of an aligned pool that a merge can hardly be told from.

    Merges of nested recipes are not compared: they would be computed again.
    """
    if "base" in plan.nested:
        return []
    experts = {name: expert for name, expert in pool.experts.items() if name not in plan.nested}
    return nearness(merged, pool.base, experts)


def _described(plan: Plan, pool: ModelPool[Any], weights: WeightSource) -> dict[str, Any]:
    return {
        **_environment(plan),
        **cast("dict[str, Any]", without_folders(_inputs(plan))),
        "stages": [stage.as_provenance() for stage in plan.stages],
        "tensors": count_tensors(pool, weights, skipped=plan.skipped),
        "matrices": [asdict(holding) for holding in plan.holdings],
        "fallbacks": [asdict(fallback) for fallback in plan.fallbacks],
        "trusted": sorted(plan.needs_trust),
    }


def _environment(plan: Plan) -> dict[str, Any]:
    return provenance.environment(plan.distributions, plan.plugins.plugins, plan.device)
