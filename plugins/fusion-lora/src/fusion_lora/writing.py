"""Writing of an adapter's directory: the tensors, PEFT's configuration, and the report."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Progress
from fusion_core.commands import (
    build_statement,
    describe_environment,
    identify_input,
    load_plugins,
)
from fusion_core.errors import RecipeError
from fusion_core.weights import check_unchanged, materialise, stage_output
from fusion_lora.modules import EXPERTS
from fusion_lora.reading.config import ADAPTER_CONFIG
from fusion_lora.reading.source import STEM
from fusion_lora.record import REPORT
from fusion_lora.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor
    from pathlib import Path

    from fusion_lora.extraction import Extraction
    from fusion_lora.record import Record

_PLUGIN, _COMMAND, _PROVENANCE = "fusion-lora", "extract-lora", "provenance.json"
#: PEFT reads one file.
ONE_FILE = 2**62


def write_adapter(  # noqa: PLR0913 - what is written, where, and how
    extraction: Extraction,
    directory: Path,
    executor: Executor,
    *,
    base_name: str | None,
    cards: Mapping[str, Mapping[str, Any]],
    blocked: frozenset[str] = frozenset(),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Record:
    """Extract an adapter into a directory, which appears complete or not at all.

    `cards` are the facts of both models' cards. Loads no plugin in `blocked`. Returns the errors.
    Raises as `stage_output` does.
    """
    progress = progress or Progress()
    plugins = load_plugins(blocked)
    environment = describe_environment({_PLUGIN}, plugins.plugins, torch.device("cpu"))
    with stage_output(directory, overwrite=overwrite) as staging:
        spool = Spool(staging.state / "factors")
        adapter, record = extraction.run(spool, executor, progress)
        _refuse_experts(record)
        materialise(spool, staging, shard_size=ONE_FILE, stem=STEM)
        staging.add(ADAPTER_CONFIG, adapter.config(extraction.base, base_name))
        staging.add(REPORT, record.as_json())
        parts = {**environment, **_describe(extraction, record), "cards": cards}
        run = {"finished": datetime.now(UTC).isoformat(timespec="seconds")}
        staging.add(_PROVENANCE, build_statement(staging, parts, run))
        for model in (extraction.model, extraction.base):
            check_unchanged(model)
        staging.commit(overwrite=overwrite)
    plugins.notify("fusion_output_written", path=directory)
    return record


def _describe(extraction: Extraction, record: Record) -> dict[str, Any]:
    """Return what `provenance.json` says of an extraction."""
    models = {"expert": extraction.model, "base": extraction.base}
    return {
        "command": _COMMAND,
        "inputs": {name: identify_input(model) for name, model in models.items()},
        "output": {"adapter": record.as_data(), "ranks": asdict(extraction.ranks)},
    }


def _refuse_experts(record: Record) -> None:
    """Raise `RecipeError` if experts change, which are most of a mixture's parameters."""
    experts = [left_out.tensor for left_out in record.left_out.get(EXPERTS, [])]
    if experts:
        patterns = dict.fromkeys(re.sub(r"\d+", "*", name) for name in experts)
        flags = " ".join(f"--skip '{pattern}'" for pattern in patterns)
        raise RecipeError(
            f"{experts[0]} and {len(experts) - 1} other tensors of experts change, and PEFT adapts "
            "only all experts of a layer together, in layouts that it knows (target_parameters)",
            hint="If --only or --skip selects some experts of a layer, select all of them.\n"
            f"To leave them out: {flags}. The report then counts them as errors.",
        )
