"""The model directory of a run: claim it, describe the run, write it and commit it."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core import hub
from fusion_core.contracts.output import EncodedOutput, OutputParts
from fusion_core.errors import OutputError, RecipeError
from fusion_core.machine.memory import peak_memory
from fusion_core.machine.ranks import is_helper_process
from fusion_core.planning.output_paths import find_unfinished
from fusion_core.planning.run_plan import count_tensors
from fusion_core.recipe.text import RECIPE, dump_yaml
from fusion_core.running._context import cast_for_output
from fusion_core.running._provenance import build_statement, describe_environment
from fusion_core.weights import (
    Staging,
    WeightSource,
    describe_nearness,
    find_in_memory_source,
    materialise,
)
from fusion_core.weights.merging.transforms import count_compiled
from fusion_core.weights.reading.assets import CARD
from fusion_core.weights.reading.containment import report_unreadable
from fusion_core.weights.source import collect_origins
from fusion_core.weights.writing.disk import report_disk_errors
from fusion_core.weights.writing.materialise import serialise
from fusion_core.weights.writing.outputs import claim, open_staging
from fusion_core.weights.writing.provenance import PROVENANCE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fusion_core.contracts.context import RunContext
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.planning.run_plan import Plan

_log = logging.getLogger(__name__)

Assets = Mapping[str, bytes | Path]


@contextmanager
def claim_output(plan: Plan) -> Iterator[Plan]:
    """Keep other runs from writing a run's output, and yield the plan with its final path.

    If the recipe names no path, the output is the first numbered path that no other run holds.
    """
    if plan.path is None or is_helper_process():
        yield plan
        return
    with ExitStack() as stack:
        if plan.resolved.recipe.output.path is not None:
            stack.enter_context(claim(plan.path, overwrite=plan.options.overwrite))
            yield plan
            return
        path = next(path for path in plan.free_paths() if _try_claim(path, stack))
        if not plan.options.resume and (left := find_unfinished(plan.recipe)):
            _log.warning(
                "%s holds work of an identical run: --resume would continue it", left[0].path
            )
        yield plan if path == plan.path else replace(plan, path=path)


def _try_claim(path: Path, stack: ExitStack) -> bool:
    try:
        stack.enter_context(claim(path))
    except OutputError:
        return False
    return True


@contextmanager
def open_run_staging(plan: Plan) -> Iterator[Staging | None]:
    """Open the staging directory of a run's claimed output, or yield None for a run in memory."""
    options = plan.options
    if plan.path is None:
        if options.resume:
            raise RecipeError(
                "a merge in memory cannot be resumed: it leaves no work behind",
                hint="Leave out --resume, or name an output.",
            )
        yield None
        return
    description = describe_run(plan)
    if options.resume and description is None:
        raise RecipeError(
            "a run with models in memory cannot be resumed: nothing identifies the models",
            hint="Leave out --resume, or save the models and name their directories.",
        )
    if options.overwrite:
        _check_inputs_survive(plan)
    key = None
    if description is not None:
        key = json.dumps(description, sort_keys=True, separators=(",", ":")).encode()
    with open_staging(
        plan.path, overwrite=options.overwrite, plan=key, resume=options.resume
    ) as staging:
        yield staging


def _check_inputs_survive(plan: Plan) -> None:
    """Raise `OutputError` if the output to be replaced contains files that are merged."""
    assert plan.path is not None  # noqa: S101 - a run in memory replaces nothing
    output = plan.path.resolve()
    for source in plan.pool.by_name.values():
        for origin in collect_origins(source):
            for path in origin.stamps:
                if path.parent.resolve().is_relative_to(output):
                    raise OutputError(
                        f"output {plan.path} contains the input {path.parent}, which --overwrite "
                        "would delete",
                        hint="Write elsewhere with -o.",
                    )


def describe_run(plan: Plan) -> dict[str, Any] | None:
    """Describe in full what a run does, before it does it, as JSON data. `--resume` compares it.

    The description holds the resolved recipe, and the inputs, versions, machine and device as in
    `provenance.json`. It is None if models in memory take part, which no file identifies.
    """
    if any(map(find_in_memory_source, plan.pool.by_name.values())):
        return None
    return {"recipe": plan.recipe, **_describe_inputs(plan), **_describe_environment(plan)}


def _describe_inputs(plan: Plan) -> dict[str, Any]:
    """Identify a run's models, and the data of its tasks where that is known."""
    data = plan.data
    return {"inputs": plan.pool.inputs(), **({"tasks": data} if data else {})}


def _describe_environment(plan: Plan, kernels: Iterable[str] = ()) -> dict[str, Any]:
    used = plan.distributions.union(name.partition("/")[0] for name in kernels)
    return describe_environment(used, plan.plugins.plugins, plan.device)


def read_assets(plan: Plan, pool: ModelPool[Any]) -> Assets:
    """Return a pool's side files, which must all be readable before any work is done.

    A model card is left out: it describes one of the models, not their merge. Raises
    `CheckpointError` for a file that cannot be read.
    """
    pool_assets = dict(pool.assets(dtype=plan.dtype))
    pool_assets.pop(CARD, None)
    assets = plan.outline_of(pool).files(pool_assets)
    for content in assets.values():
        if isinstance(content, Path):
            with report_unreadable(content):
                content.open("rb").close()
    return assets


def write_model(  # noqa: PLR0913, PLR0917 - what is written, where, and since when
    plan: Plan,
    staging: Staging,
    pool: ModelPool[Any],
    assets: Assets,
    weights: WeightSource,
    context: RunContext,
    started: float,
) -> tuple[list[str], tuple[str, ...], Mapping[str, int]]:
    """Write and commit the model directory of an aligned pool: all of it, or nothing.

    Returns warnings about the result, what its form lost, and the tensors of each kernel.
    """
    output = _encode(plan, staging, pool, assets, weights, context)
    materialise(
        output.weights,
        staging,
        shard_size=plan.resolved.recipe.output.shard_size,
        stem=output.stem,
        executor=context.executor,
        progress=plan.options.progress,
    )
    for name, content in {**output.files, **context.side_files}.items():
        if isinstance(content, WeightSource):
            staging.add(name, serialise(content, context.executor))
        else:
            staging.add(name, content)
    written = plan.read_output(staging.directory, pool)
    warnings = [*context.warnings, *find_near_models(plan, pool, written)]
    staging.add(RECIPE, dump_yaml(plan.recipe_in(plan.path)).encode())
    run = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started, 3),
        "peak_memory": peak_memory(),
    }
    kernels = count_compiled(weights)
    parts = {
        **_describe_environment(plan, kernels),
        "recipe": plan.recipe,
        **_describe_inputs(plan),
        "commits": hub.resolved_commits(),
        "cards": {name: card for name, card in plan.cards.items() if card},
        "stages": [stage.as_provenance() for stage in plan.stages],
        "tensors": count_tensors(pool, weights, skipped=plan.skipped),
        "matrices": [asdict(holding) for holding in plan.holdings],
        "fallbacks": [asdict(fallback) for fallback in plan.fallbacks],
        "kernels": kernels,
        "relaxed": plan.resolved.recipe.alignment.model_dump(exclude_defaults=True),
        "trusted": sorted(plan.needs_trust),
        "warnings": [*plan.warnings, *warnings],
        **({"output": dict(output.record)} if output.record else {}),
    }
    staging.add(PROVENANCE, build_statement(staging, parts, run))
    pool.check_unchanged()
    staging.commit(overwrite=plan.options.overwrite)
    return warnings, output.summary, kernels


def _encode(  # noqa: PLR0913, PLR0917 - the parts of an output
    plan: Plan,
    staging: Staging,
    pool: ModelPool[Any],
    assets: Assets,
    merged: WeightSource,
    context: RunContext,
) -> EncodedOutput:
    """Return the files of the output: those of a full model, or those of the recipe's form."""
    stored = cast_for_output(plan, merged, pool)
    if plan.encoder is None:
        return EncodedOutput(stored, assets)
    scratch = staging.state / "output"
    with report_disk_errors(scratch):
        if scratch.exists():  # files of a run that was stopped
            shutil.rmtree(scratch)
        scratch.mkdir()
    parts = OutputParts(
        merged, stored, pool, assets, context.executor, plan.options.progress, scratch
    )
    return plan.encoder.encode(parts)


def find_near_models(plan: Plan, pool: ModelPool[Any], merged: WeightSource) -> list[str]:
    """Return a warning for each model of an aligned pool that is nearly the merge.

    Models that are nested recipes are skipped, because they would be merged again. So is a result
    that is more than weights.
    """
    if "base" in plan.nested or plan.modules_file is not None:
        return []
    experts = {name: expert for name, expert in pool.experts.items() if name not in plan.nested}
    return describe_nearness(merged, pool.base, experts)
