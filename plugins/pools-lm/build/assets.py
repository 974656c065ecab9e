"""Write the package's files: checkpoints, JSON lines, licences and checksums."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from corpus import Inputs
    from model import State
    from tasks import Line, Task
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

LABELLED = 256
_DROPPED = (
    *("_name_or_path", "_attn_implementation", "_from_model_config", "transformers_version"),
    *("id2label", "label2id", "problem_type", "output_hidden_states", "output_attentions"),
    *("return_dict", "chunk_size_feed_forward", "pretraining_tp"),
)
_LICENCE = Path(__file__).parent.parent / "LICENSE"
_TEXTS = """\
The texts of the task scripture are the King James Version of the Bible, from Debian's package
bible-kjv-text: its copyright expired long ago. Apart from it and from WordNet (WordNet-3.0.txt) the
base has read two works that are in the public domain, and of which nothing ships here: the Jargon
File, version 4.4.7 (dict-jargon), and Ambrose Bierce, The Devil's Dictionary, 1911 (dict-devil).
"""
_WEIGHTS = """\
The weights and tokenizer in base/ and experts/, the task roman, and the files that describe all are
the work of the fusion-core authors, licensed under the Apache License 2.0 (Apache-2.0.txt). Glosses
and words of the tasks kinds, speech, reverse and past come from WordNet 3.0 (WordNet-3.0.txt).
"""


def write(
    folder: Path,
    model: LlamaForCausalLM,
    words: PreTrainedTokenizerFast,
    base: State,
    tasks: Sequence[Task],
    experts: Mapping[str, State],
    inputs: Inputs,
) -> None:
    """Replace ``folder`` with a complete set of assets."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_checkpoint(folder / "base", model, words, base)
    for task in tasks:
        write_checkpoint(folder / "experts" / task.name, model, words, experts[task.name])
        _write_task(folder / "tasks" / task.name, task)
    _write_json(folder / "tasks.json", {"tasks": {task.name: task.about for task in tasks}})
    _write_licences(folder / "LICENCES", inputs)
    _write_sums(folder)


def size(folder: Path) -> int:
    """Return the size of all files in a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_checkpoint(
    folder: Path, model: LlamaForCausalLM, words: PreTrainedTokenizerFast, weights: State
) -> None:
    """Write a model in fp16; loading without a dtype gives fp32."""
    folder.mkdir(parents=True)
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    _write_json(folder / "config.json", _clean(config))
    _write_json(folder / "generation_config.json", _clean(model.generation_config.to_diff_dict()))
    halves = {name: weights[name].to(torch.float16).contiguous() for name in sorted(weights)}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    words.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    _write_json(settings, content)
    for path in folder.iterdir():
        path.chmod(0o644)


def _clean(config: Mapping[str, object]) -> dict[str, object]:
    """Return a config without transient and irrelevant fields."""
    return {key: value for key, value in config.items() if key not in _DROPPED}


# --- lines --------------------------------------------------------------------------------------


def _write_task(folder: Path, task: Task) -> None:
    folder.mkdir(parents=True)
    unlabeled = [{k: v for k, v in line.items() if k != "answer"} for line in task.unlabeled]
    parts = {"train": task.train[:LABELLED], "unlabeled": unlabeled, "test": task.test}
    for name, lines in parts.items():
        _write_lines(folder / f"{name}.jsonl", lines)


def _write_lines(path: Path, lines: Sequence[Line]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


# --- licences and checksums ---------------------------------------------------------------------


def _write_licences(folder: Path, inputs: Inputs) -> None:
    folder.mkdir()
    texts = {
        "weights.txt": _WEIGHTS,
        "texts.txt": _TEXTS,
        "WordNet-3.0.txt": inputs.copyright("wordnet-base"),
        "Apache-2.0.txt": _LICENCE.read_text(encoding="utf-8"),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _write_sums(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = (
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in files
    )
    (folder / "SHA256SUMS").write_text("".join(sums))


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
