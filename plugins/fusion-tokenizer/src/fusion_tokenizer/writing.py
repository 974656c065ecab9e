"""Writing of a transplanted model's directory: tensors, side files, report and provenance."""

from __future__ import annotations

import hashlib
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
from fusion_tokenizer.auto_tokenizer import compare_loaded
from fusion_tokenizer.perplexity import measure
from fusion_tokenizer.record import REPORT
from pools_checkpoints import read_card, read_side_file, select_tokenizer_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fusion_core import Progress
    from fusion_tokenizer.models import Side
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
        record.warnings += compare_loaded(staging.directory, pair, record.rows)
        staging.add(REPORT, record.as_json())
        run = {"finished": datetime.now(UTC).isoformat(timespec="seconds")}
        parts = {**environment, **_describe(transplant, record)}
        staging.add(_PROVENANCE, build_statement(staging, parts, run))
        for side in (pair.model, pair.donor):
            if side.embeddings is not None:
                check_unchanged(side.embeddings.source)
        staging.commit(overwrite=overwrite)
    plugins.notify("fusion_output_written", path=directory)
    return record


def _identify(side: Side) -> dict[str, Any]:
    """Identify a model for the provenance: its weights, if they are read, and its tokenizer."""
    weights = side.embeddings
    identity: dict[str, Any] = (
        {"source": side.name} if weights is None else identify_input(weights.source)
    )
    files: dict[str, Any] = dict(identity.get("files", {}))
    for name, file in select_tokenizer_files(side.files).items():
        content = read_side_file(file)
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {**identity, "files": files}


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
        "inputs": {"model": _identify(pair.model), "donor": _identify(pair.donor)},
        "cards": {
            "model": read_card(pair.model.directory),
            "donor": read_card(pair.donor.directory),
        },
        "warnings": record.warnings,
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
