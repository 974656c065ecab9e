"""Writing of a transplanted model's directory: tensors, side files, report and provenance."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.commands import (
    build_statement,
    describe_environment,
    identify_input,
    load_plugins,
)
from fusion_core.errors import OutputError
from fusion_core.weights import check_unchanged, materialise, stage_output
from fusion_tokenizer.perplexity import measure
from fusion_tokenizer.record import REPORT
from pools_checkpoints import read_card

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fusion_core import Progress, WeightSource
    from fusion_tokenizer.record import Record
    from fusion_tokenizer.transplant import Transplant

_PLUGIN, _COMMAND, _PROVENANCE = "fusion-tokenizer", "transplant-tokenizer", "provenance.json"
SHARD_SIZE = 5_000_000_000


def write_model(  # noqa: PLR0913 - what is written, where, and how
    transplant: Transplant,
    directory: Path,
    progress: Progress,
    *,
    text: str | None = None,
    blocked: frozenset[str] = frozenset(),
    overwrite: bool = False,
) -> Record:
    """Write the model into a directory, which appears complete or not at all.

    With a text, its likelihood is measured before and after. Loads no plugin in `blocked`. Raises
    as `stage_output` and `Transplant.carry_out` do.
    """
    pair = transplant.pair
    plugins = load_plugins(blocked)
    environment = describe_environment({_PLUGIN}, plugins.plugins, torch.device("cpu"))
    if overwrite:
        _check_inputs_survive(transplant, directory)
    with stage_output(directory, overwrite=overwrite) as staging:
        source, record = transplant.carry_out(progress)
        materialise(
            source, staging, shard_size=SHARD_SIZE, executor=pair.executor, progress=progress
        )
        for name, content in transplant.files.items():
            staging.add(name, content)
        if text is not None:
            model = pair.model
            record.perplexity["before"] = measure(model.directory, model.vocabulary, text)
            record.perplexity["after"] = measure(staging.directory, pair.donor.vocabulary, text)
        staging.add(REPORT, record.as_json())
        run = {"finished": datetime.now(UTC).isoformat(timespec="seconds")}
        parts = {**environment, **_describe(transplant, record)}
        staging.add(_PROVENANCE, build_statement(staging, parts, run))
        for model_source in _inputs(transplant).values():
            check_unchanged(model_source)
        staging.commit(overwrite=overwrite)
    plugins.notify("fusion_output_written", path=directory)
    return record


def _inputs(transplant: Transplant) -> dict[str, WeightSource]:
    """Return the models whose weights are read."""
    pair = transplant.pair
    sides = {"model": pair.model.embeddings, "donor": pair.donor.embeddings}
    return {name: side.source for name, side in sides.items() if side is not None}


def _check_inputs_survive(transplant: Transplant, directory: Path) -> None:
    """Raise `OutputError` if the output to be replaced contains the model or the donor."""
    output = directory.resolve()
    for path in (transplant.pair.model.directory, transplant.pair.donor.directory):
        if path.resolve().is_relative_to(output):
            raise OutputError(
                f"output {directory} contains the input {path}, which --overwrite would delete",
                hint="Write elsewhere with -o.",
            )


def _describe(transplant: Transplant, record: Record) -> dict[str, Any]:
    """Return what `provenance.json` says of a transplant."""
    pair = transplant.pair
    return {
        "command": _COMMAND,
        "inputs": {name: identify_input(source) for name, source in _inputs(transplant).items()},
        "cards": {
            "model": read_card(pair.model.directory),
            "donor": read_card(pair.donor.directory),
        },
        "warnings": list(transplant.warnings),
        "output": {
            "tokenizer": record.as_data(),
            "tokenizers": dict(_digests(transplant)),
            "options": asdict(transplant.options),
        },
    }


def _digests(transplant: Transplant) -> Iterator[tuple[str, Any]]:
    """Yield the digest of each tokenizer, as the library writes it."""
    for name, side in (("model", transplant.pair.model), ("donor", transplant.pair.donor)):
        yield name, {"sha256": side.vocabulary.description.digest}
