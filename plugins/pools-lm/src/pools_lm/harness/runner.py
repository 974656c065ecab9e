"""What runs beside lm-evaluation-harness: reads a request in JSON, writes an answer in JSON.

A program of its own (`run.py REQUEST ANSWER`), for an environment that may have nothing of ours:
Python >= 3.10 and lm-eval. What it prints is for people. An answer is `{"done": ...}`, or
`{"error": {"kind": ..., "message": ...}}` for what can be said better than by a traceback.
"""

# ruff: noqa: ANN401 - the harness's objects, which are known where it runs
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

#: What one call of a model's chat template or tokenizer may take, in seconds and bytes.
SECONDS_OF_MODELS_OWN, _MEMORY_OF_MODELS_OWN = 60.0, 1_500_000_000

Json = dict[str, Any]


class Refused(Exception):  # noqa: N818 - an answer
    """An answer that says why there is none."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.answer = {"error": {"kind": kind, "message": message}}


def main(request: Path, answer: Path) -> None:
    """Answer a request: `describe` its tasks, or measure a model on them."""
    asked: Json = json.loads(request.read_bytes())
    try:
        _check_installed()
        done = describe(asked) if asked["do"] == "describe" else measure(asked)
        content = {"done": {"versions": _versions(), **done}}
    except Refused as refused:
        content = refused.answer
    answer.write_text(json.dumps(content), encoding="utf-8")


def _check_installed() -> None:
    missing = [name for name in _NEEDED if util.find_spec(name) is None]
    if missing:
        raise Refused("missing", ", ".join(missing))
    from lm_eval.tasks import TaskManager

    if not hasattr(TaskManager, "load"):
        raise Refused("old", metadata.version("lm-eval"))


def _versions() -> dict[str, str]:
    own = ".".join(map(str, sys.version_info[:3]))
    return {"python": own, **{name: metadata.version(name) for name in _VERSIONS}}


def _manager(asked: Json) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=asked["include_path"])


# --- what there is, without reading data ---------------------------------------------------------


def describe(asked: Json) -> Json:
    """Say of each name what the harness knows by it."""
    if asked["device"] is not None:
        _check_device(asked["device"])
    index = _manager(asked).task_index
    return {"tasks": {name: _entry(name, index) for name in asked["tasks"]}}


def _entry(name: str, index: Json) -> Json:
    found = index.get(name)
    if found is None:
        return {"kind": "unknown", "close": get_close_matches(name, index, n=3)}
    config: Json = found.cfg or {}
    leaves = [*_leaves(name, index, {})]
    listed = config.get("aggregate_metric_list" if found.kind.name == "GROUP" else "metric_list")
    return {
        "kind": found.kind.name.lower(),
        "metrics": [] if "process_results" in config else [_name(each) for each in _listed(listed)],
        "members": [leaf["task"] for leaf in leaves],
        "unsafe": [leaf["task"] for leaf in leaves if leaf.get("unsafe_code")],
        "data": [_data(leaf) for leaf in leaves],
        "missing": [str(path) for leaf in leaves for path in _missing(leaf)],
        "digest": _digest([config, leaves]),
    }


def _leaves(name: str, index: Json, changes: Json) -> Any:
    """Yield the configurations of the tasks that a name stands for, as they are changed there."""
    found = index.get(name)
    if found is None:  # a task that a group itself configures
        yield {**changes, "task": name}
    elif found.kind.name == "TAG":
        for tag in sorted(found.tags):
            yield from _leaves(tag, index, changes)
    elif found.kind.name == "GROUP":
        for each in _listed(found.cfg.get("task")):
            own = {"task": each} if isinstance(each, str) else each
            yield from _leaves(own.get("task") or own["group"], index, {**changes, **own})
    else:
        yield {**found.cfg, **changes, "task": name}


def _name(metric: Json) -> str:
    return str(metric["metric"]).rpartition(".")[2]


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _data(config: Json) -> Any:
    """Identify a task's data: files by size and time, what is on the hub by its commit.

    None where neither is known: what was measured on it is then not remembered.
    """
    path, files = config.get("dataset_path"), _data_files(config)
    if path and not files and Path(path).is_dir():
        files = sorted(each for each in Path(path).rglob("*") if each.is_file())
    if files:
        known = all(file.is_file() for file in files)
        stats = {str(file): file.stat() for file in files} if known else {}
        return {name: [each.st_size, each.st_mtime_ns] for name, each in stats.items()} or None
    commit = _commit(path, (config.get("dataset_kwargs") or {}).get("revision")) if path else None
    return commit and {"data_set": path, "commit": commit}


def _data_files(config: Json) -> list[Path]:
    """Return the files that a task names: here, or patterns and addresses."""
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    by_split = files.values() if isinstance(files, dict) else [files]
    return [Path(each) for split in by_split for each in _listed(split)]


def _missing(config: Json) -> list[Path]:
    """Return the files of this machine that a task names and that are not there."""
    absolute = [data_file for data_file in _data_files(config) if data_file.is_absolute()]
    return [each for each in absolute if not (each.exists() or set("*?[") & set(str(each)))]


@cache
def _commit(data_set: str, revision: str | None) -> str | None:
    try:
        from huggingface_hub import HfApi

        found = HfApi().dataset_info(data_set, revision=revision, timeout=10).sha
    except Exception:  # noqa: BLE001 - no network, no such data set: the run will say
        return None
    return None if found is None else str(found)


# --- measuring -----------------------------------------------------------------------------------


def measure(asked: Json) -> Json:
    """Measure a model directory on tasks, each as if there were no other."""
    _check_device(asked["device"])
    _load_data_only()
    manager = _manager(asked)
    loaded = {name: _load(manager, name) for name in asked["tasks"]}
    from lm_eval.models.huggingface import HFLM

    model = HFLM(
        pretrained=asked["model"],
        device=asked["device"],
        dtype=asked["dtype"],
        batch_size=asked["batch_size"],
    )
    _limit_what_came_with(model)
    return {
        "tasks": {
            name: _measured(model, name, each, {**asked, "task_manager": manager})
            for name, each in loaded.items()
        }
    }


def _limit_what_came_with(model: Any) -> None:
    """Have a chat template or tokenizer that never ends, or fills the memory, end this process.

    The default action of SIGALRM ends it, whatever code is stuck.
    """
    for name in ("apply_chat_template", "tok_encode", "tok_batch_encode"):
        if hasattr(model, name):
            setattr(model, name, _within_limits(getattr(model, name)))


def _within_limits(work: Any) -> Any:
    @wraps(work)
    def limited(*args: Any, **options: Any) -> Any:
        before = resource.getrlimit(resource.RLIMIT_DATA)
        signal.setitimer(signal.ITIMER_REAL, SECONDS_OF_MODELS_OWN)
        with suppress(OSError, ValueError):  # no /proc, or a lower limit already
            used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_DATA, (used + _MEMORY_OF_MODELS_OWN, before[1]))
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
        raise Refused("device", f"torch {torch.__version__} says: {_in_short(error)}") from error


def _load_data_only() -> None:
    """Have data sets loaded without the scripts that old ones bring: those are code from the hub.

    Some tasks of the harness ask for them. Since version 4 the datasets library runs none.
    """
    os.environ["HF_DATASETS_TRUST_REMOTE_CODE"] = "0"  # read when datasets is imported
    datasets: Any = import_module("datasets")
    load = datasets.load_dataset

    def load_data(*args: Any, trust_remote_code: Any = None, **options: Any) -> Any:
        del trust_remote_code
        return load(*args, **options)

    datasets.load_dataset = load_data


def _load(manager: Any, name: str) -> Any:
    """Read a task's data, or that of a group's members.

    A name that is not in the harness's index would be taken for the path of a YAML file.
    """
    if name not in manager.task_index:
        raise Refused("data", f"task {name!r}: the harness has no task of this name")
    try:
        found = manager.load([name])
    except Exception as error:
        kind = "network" if _NO_NETWORK.search(f"{type(error).__name__}: {error}") else "data"
        raise Refused(kind, f"task {name!r}: {_in_short(error)}") from error
    groups = found.get("groups") or {}
    return groups.get(name) or found["tasks"][name]


def _in_short(error: BaseException) -> str:
    own = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return own if error.__cause__ is None else f"{own}; {_in_short(error.__cause__)}"


def _measured(model: Any, name: str, task: Any, asked: Json) -> Json:
    from lm_eval import simple_evaluate

    found = simple_evaluate(
        model=model,
        tasks=[task],
        num_fewshot=asked["num_fewshot"],
        limit=asked["limit"],
        apply_chat_template=asked["apply_chat_template"],
        task_manager=asked["task_manager"],
        log_samples=False,
        **_seeds(asked["seed"]),
    )
    print(f"lm-eval has measured {name}", flush=True)  # noqa: T201 - counted, and for people
    values = found["results"][name]
    settings = found["config"]
    counts = [each["effective"] for each in found["n-samples"].values()]
    return {
        "values": {key: float(each) for key, each in values.items() if _is_value(key, each)},
        "higher_is_better": found["higher_is_better"].get(name, {}),
        "version": found["versions"].get(name),
        "num_fewshot": found["n-shot"].get(name),
        "examples": sum(counts),
        "seeds": {key: settings[f"{key}_seed"] for key in ("random", "numpy", "torch", "fewshot")},
    }


def _is_value(key: str, value: Any) -> bool:
    return "," in key and isinstance(value, Real)


def _seeds(seed: int | None) -> dict[str, int]:
    """Return the arguments for one seed; none for the harness's own."""
    names = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    return {} if seed is None else dict.fromkeys(names, seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
