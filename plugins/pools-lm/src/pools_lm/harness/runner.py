"""The program that runs lm-evaluation-harness: it reads a JSON request and writes a JSON answer.

It runs on its own (`run.py REQUEST ANSWER`), in an environment that needs only Python >= 3.10 and
lm-eval. Its output is for people. An answer is `{"done": ...}`, or
`{"error": {"kind": ..., "message": ...}}` for expected errors.
"""

# ruff: noqa: ANN401 - the harness's types are unknown here
from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import signal
import sys
from contextlib import suppress
from difflib import get_close_matches
from functools import cache, wraps
from importlib import import_module, metadata, util
from numbers import Real
from pathlib import Path
from typing import Any

_NEEDED = ("lm_eval", "torch", "transformers", "accelerate")
_VERSIONS = ("lm-eval", "torch", "transformers", "datasets")
_NO_NETWORK = re.compile(r"Connect|Offline|Timeout|LocalEntryNotFound|HubHTTP|Couldn't reach")

#: Limits of one call of a model's chat template or tokenizer, in seconds and bytes.
MODEL_CODE_SECONDS, _MODEL_CODE_BYTES = 60.0, 1_500_000_000

Json = dict[str, Any]


class Refused(Exception):  # noqa: N818 - an answer
    """An expected error, which becomes the answer."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.answer = {"error": {"kind": kind, "message": message}}


def main(request_file: Path, answer_file: Path) -> None:
    """Answer a request to describe tasks or to evaluate a model on them."""
    request: Json = json.loads(request_file.read_bytes())
    try:
        _check_installed()
        done = describe(request) if request["do"] == "describe" else evaluate(request)
        answer = {"done": {"versions": _versions(), **done}}
    except Refused as refused:
        answer = refused.answer
    answer_file.write_text(json.dumps(answer), encoding="utf-8")


def _check_installed() -> None:
    missing = [name for name in _NEEDED if util.find_spec(name) is None]
    if missing:
        raise Refused("missing", ", ".join(missing))
    from lm_eval.tasks import TaskManager

    if not hasattr(TaskManager, "load"):
        raise Refused("old", metadata.version("lm-eval"))


def _versions() -> dict[str, str]:
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python, **{name: metadata.version(name) for name in _VERSIONS}}


def _task_manager(request: Json) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=request["include_path"])


# --- descriptions, without reading data ----------------------------------------------------------


def describe(request: Json) -> Json:
    """Describe each name in the harness's index."""
    if request["device"] is not None:
        _check_device(request["device"])
    index = _task_manager(request).task_index
    return {"tasks": {name: _describe_entry(name, index) for name in request["tasks"]}}


def _describe_entry(name: str, index: Json) -> Json:
    entry = index.get(name)
    if entry is None:
        return {"kind": "unknown", "close": get_close_matches(name, index, n=3)}
    config: Json = entry.cfg or {}
    leaves = [*_leaf_configs(name, index, {})]
    metrics = config.get("aggregate_metric_list" if entry.kind.name == "GROUP" else "metric_list")
    return {
        "kind": entry.kind.name.lower(),
        "metrics": []
        if "process_results" in config
        else [str(metric["metric"]).rpartition(".")[2] for metric in _as_list(metrics)],
        "members": [leaf["task"] for leaf in leaves],
        "unsafe": [leaf["task"] for leaf in leaves if leaf.get("unsafe_code")],
        "data": [_identify_data(leaf) for leaf in leaves],
        "missing": [str(path) for leaf in leaves for path in _missing_files(leaf)],
        "digest": _digest([config, leaves]),
    }


def _leaf_configs(name: str, index: Json, changes: Json) -> Any:
    """Yield the configuration of each task in a name, with the changes of its groups."""
    entry = index.get(name)
    if entry is None:  # a task that a group itself configures
        yield {**changes, "task": name}
    elif entry.kind.name == "TAG":
        for tag in sorted(entry.tags):
            yield from _leaf_configs(tag, index, changes)
    elif entry.kind.name == "GROUP":
        for member in _as_list(entry.cfg.get("task")):
            config = {"task": member} if isinstance(member, str) else member
            member_name = config.get("task") or config["group"]
            yield from _leaf_configs(member_name, index, {**changes, **config})
    else:
        yield {**entry.cfg, **changes, "task": name}


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _identify_data(config: Json) -> Any:
    """Identify a task's data: files by size and time, a data set on the hub by its commit.

    Return None if neither is known. Results on such data are not cached.
    """
    path, files = config.get("dataset_path"), _data_files(config)
    if path and not files and Path(path).is_dir():
        files = sorted(file for file in Path(path).rglob("*") if file.is_file())
    if files:
        known = all(file.is_file() for file in files)
        stats = {str(file): file.stat() for file in files} if known else {}
        return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()} or None
    revision = (config.get("dataset_kwargs") or {}).get("revision")
    return _find_on_hub(path, revision) if path else None


def _data_files(config: Json) -> list[Path]:
    """Return the data files of a task: local paths, patterns or addresses."""
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    by_split = files.values() if isinstance(files, dict) else [files]
    return [Path(file) for split in by_split for file in _as_list(split)]


def _missing_files(config: Json) -> list[Path]:
    """Return the local data files of a task that do not exist."""
    local = [file for file in _data_files(config) if file.is_absolute()]
    return [file for file in local if not (file.exists() or set("*?[") & set(str(file)))]


@cache
def _find_on_hub(data_set: str, revision: str | None) -> Json | None:
    """Return the current name and commit of a data set, which tasks may call by an old name."""
    try:
        from huggingface_hub import HfApi

        info = HfApi().dataset_info(data_set, revision=revision, timeout=10)
    except Exception:  # noqa: BLE001 - no network or no data set; the evaluation reports it
        return None
    return None if info.sha is None else {"data_set": info.id, "commit": info.sha}


# --- evaluation ----------------------------------------------------------------------------------


def evaluate(request: Json) -> Json:
    """Evaluate a model directory on tasks, each one separately."""
    _check_device(request["device"])
    _disable_data_scripts()
    manager = _task_manager(request)
    tasks = {name: _load_task(manager, name) for name in request["tasks"]}
    from lm_eval.models.huggingface import HFLM

    model = HFLM(
        pretrained=request["model"],
        device=request["device"],
        dtype=request["dtype"],
        batch_size=request["batch_size"],
    )
    limit_model_code(model)
    return {
        "tasks": {
            name: _evaluate_task(model, name, task, {**request, "task_manager": manager})
            for name, task in tasks.items()
        }
    }


def limit_model_code(model: Any) -> None:
    """Limit the time and memory of the chat template and the tokenizer, which come with a model.

    The default action of SIGALRM ends this process, whatever code is running.
    """
    for name in ("apply_chat_template", "tok_encode", "tok_batch_encode"):
        if hasattr(model, name):
            setattr(model, name, _within_limits(getattr(model, name)))


def _within_limits(work: Any) -> Any:
    @wraps(work)
    def limited(*args: Any, **options: Any) -> Any:
        before = resource.getrlimit(resource.RLIMIT_DATA)
        signal.setitimer(signal.ITIMER_REAL, MODEL_CODE_SECONDS)
        with suppress(OSError, ValueError):  # no /proc, or a lower limit already
            used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_DATA, (used + _MODEL_CODE_BYTES, before[1]))
        try:
            return work(*args, **options)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            resource.setrlimit(resource.RLIMIT_DATA, before)

    return limited


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except Exception as error:
        raise Refused("device", f"torch {torch.__version__} says: {_summarize(error)}") from error


def _disable_data_scripts() -> None:
    """Load data sets without the scripts of old ones, which are code from the hub.

    Some tasks of the harness ask for scripts. Since version 4, the datasets library runs none.
    """
    os.environ["HF_DATASETS_TRUST_REMOTE_CODE"] = "0"  # read when datasets is imported
    datasets: Any = import_module("datasets")
    load = datasets.load_dataset

    def load_data(*args: Any, trust_remote_code: Any = None, **options: Any) -> Any:
        del trust_remote_code
        return load(*args, **options)

    datasets.load_dataset = load_data


def _load_task(manager: Any, name: str) -> Any:
    """Read the data of a task, or of a group's members.

    The harness would read a name outside its index as the path of a YAML file.
    """
    if name not in manager.task_index:
        raise Refused("data", f"task {name!r}: unknown to the harness")
    try:
        loaded = manager.load([name])
    except Exception as error:
        kind = "network" if _NO_NETWORK.search(f"{type(error).__name__}: {error}") else "data"
        raise Refused(kind, f"task {name!r}: {_summarize(error)}") from error
    groups = loaded.get("groups") or {}
    return groups.get(name) or loaded["tasks"][name]


def _summarize(error: BaseException) -> str:
    summary = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return summary if error.__cause__ is None else f"{summary}; {_summarize(error.__cause__)}"


def _evaluate_task(model: Any, name: str, task: Any, request: Json) -> Json:
    from lm_eval import simple_evaluate

    results = simple_evaluate(
        model=model,
        tasks=[task],
        num_fewshot=request["num_fewshot"],
        limit=request["limit"],
        apply_chat_template=request["apply_chat_template"],
        task_manager=request["task_manager"],
        log_samples=False,
        **_seeds(request["seed"]),
    )
    print(f"lm-eval has measured {name}", flush=True)  # noqa: T201 - the parent counts these lines
    values = results["results"][name]
    settings = results["config"]
    counts = [samples["effective"] for samples in results["n-samples"].values()]
    return {
        "values": {
            key: float(value)
            for key, value in values.items()
            if "," in key and isinstance(value, Real)
        },
        "higher_is_better": results["higher_is_better"].get(name, {}),
        "version": results["versions"].get(name),
        "num_fewshot": results["n-shot"].get(name),
        "examples": sum(counts),
        "seeds": {key: settings[f"{key}_seed"] for key in ("random", "numpy", "torch", "fewshot")},
    }


def _seeds(seed: int | None) -> dict[str, int]:
    """Return the arguments for one seed; none for the harness's own seeds."""
    names = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    return {} if seed is None else dict.fromkeys(names, seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
