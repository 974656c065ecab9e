"""A directory is measured with its own configuration and tokenizer, not with the base's."""

from __future__ import annotations

import json
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

APP = resolve_name("fusion_core.cli.app:app")


def fuse(*arguments: str) -> tuple[dict[str, Any], str]:
    """Return the report and the warnings of a command."""
    done = CliRunner().invoke(APP, [*arguments, "-q", "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), done.stderr


def set_epsilon(files: dict[str, Any]) -> None:
    files["config.json"]["rms_norm_eps"] = 0.5


def prepend_letter(files: dict[str, Any]) -> None:
    files["tokenizer.json"]["normalizer"] = {"type": "Prepend", "prepend": "q"}


@pytest.mark.parametrize("edit", [set_epsilon, prepend_letter])
def test_an_edited_directory_is_measured_with_its_own_files(
    models_of: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    edit: Callable[[dict[str, Any]], None],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "test.jsonl").write_text('{"text": "the fox jumps over the dog"}\n')
    output, models = tmp_path / "out", models_of("llama")
    datasets = {"foxes": {"kind": "perplexity", "test": str(tmp_path / "test.jsonl")}}
    tasks = ["--task-pool", "lm-tasks", "--set", f"task_pool.datasets={json.dumps(datasets)}"]
    options = [f"model_pool.{name}={json.dumps(value)}" for name, value in models.items()]
    flags = [part for option in options for part in ("--set", option)]
    run = ("run", "--algo", "simple-average", "--pool", "causal-lm", *flags, *tasks)
    fuse(*run, "-o", str(output))
    first, warnings = fuse("evaluate", str(output))
    assert "its own" not in warnings

    names = ("config.json", "tokenizer.json")
    files = {name: json.loads((output / name).read_text()) for name in names}
    edit(files)
    for name, content in files.items():
        (output / name).write_text(json.dumps(content))
    report, warnings = fuse("evaluate", str(output))
    assert "the model is measured with its own" in warnings
    assert report["tasks"] != first["tasks"]
    assert report["reference"] == first["reference"]
    assert report["remembered"].keys() == {"base"}

    alone = f"model_pool.models={json.dumps({'m': str(output)})}"
    expected, _ = fuse("evaluate", str(output), "--pool", "causal-lm", "--set", alone, *tasks)
    assert report["tasks"] == expected["tasks"]
