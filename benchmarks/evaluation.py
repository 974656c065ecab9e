"""Compare `fuse evaluate` with the same evaluation in plain transformers.

    python benchmarks/evaluation.py MODEL TASKS --tasks odd,dates,records --repeats 3

MODEL is the directory of a language model, and TASKS a JSON file with the options of a task pool
`lm-tasks`. A task can also be a text to score, `{"kind": "perplexity", "text": "...", ...}`. Both
programs measure each task in turn, in the stored dtype (`auto`) and in fp32, on the same examples
and with the same batch size. The table has the ratio ours / plain of processor time and wall time
without start-up (the imports), the peak memory of the whole processes, and both scores. Nothing is
asserted. With OMP_NUM_THREADS=1 both use one core, so that no thread spins on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import MB, Measures, headings, row

if TYPE_CHECKING:
    from collections.abc import Iterator

CHILD = Path(__file__).with_name("evaluation_children.py")
DTYPES = ("auto", "float32")
#: what both programs import before they start
IMPORTS = {
    "ours": "import pools_lm.tasks.pool; from transformers import LlamaForCausalLM",
    "plain": "from transformers import LlamaForCausalLM, AutoTokenizer",
}


def main() -> None:
    """Measure, and print the table."""
    options = _options()
    directory = Path(tempfile.mkdtemp(prefix="fuse-bench-"))
    measures = Measures(directory)
    try:
        data = _first_lines(options, directory)
        for _ in range(2):  # the first reads its code from the disk
            for program, imports in IMPORTS.items():
                measures.measure(f"start-up {program}", [sys.executable, "-c", imports])
        heads = ["task", "dtype", "CPU: plain, ours", "ratio", "wall: plain, ours", "ratio"]
        heads += ["peak: plain, ours", "ratio", "score: plain, ours"]
        print(headings(heads))
        for name, task in data.items():
            for dtype in options.dtypes.split(","):
                for _ in range(options.repeats):
                    scores = [*_measure(measures, options, name, task, dtype)]
                print(row([name, dtype, *_cells(measures, f"{name} {dtype}"), ", ".join(scores)]))
                sys.stdout.flush()
    finally:
        shutil.rmtree(directory)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="the model's directory")
    parser.add_argument("pool", type=Path, help="the options of lm-tasks, as JSON")
    parser.add_argument("--tasks", required=True, help="the tasks to measure, as a,b")
    parser.add_argument("--limit", type=int, default=48, help="of examples per task")
    parser.add_argument("--batch-size", default="16")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def _first_lines(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Return the tasks with files that hold their first examples."""
    known: dict[str, Any] = json.loads(options.pool.read_text())["datasets"]
    data = {}
    for name in options.tasks.split(","):
        task = known[name]
        lines = Path(task["test"]).read_text().splitlines()[: options.limit]
        file = directory / f"{name}.jsonl"
        file.write_text("\n".join(lines))
        others = {key: value for key, value in task.items() if key not in {"unlabeled", "train"}}
        data[name] = {**others, "test": str(file)}
    return data


def _measure(
    measures: Measures,
    options: argparse.Namespace,
    name: str,
    task: Any,  # noqa: ANN401
    dtype: str,
) -> Iterator[str]:
    """Measure a task by both programs, and yield the scores."""
    model, size, tasks = str(options.model.resolve()), options.batch_size, json.dumps({name: task})
    command = [sys.executable, str(CHILD), model, tasks, size, dtype]
    measures.measure(f"plain {name} {dtype}", command)
    yield f"{json.loads(_last_line(measures))[name]:.4f}"
    fuse = str(Path(sys.executable).with_name("fuse"))
    sets = {"model_pool.models": json.dumps({"m": model}), "task_pool.datasets": tasks}
    sets |= {"task_pool.batch_size": size, "task_pool.dtype": dtype}
    flags = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    command = [fuse, "evaluate", model, "--pool", "causal-lm", "--task-pool", "lm-tasks", *flags]
    measures.measure(f"ours {name} {dtype}", [*command, "--fresh", "-q", "--json"])
    report = json.loads((measures.directory / "log").read_text())
    yield f"{next(iter(report['tasks'][name].values())):.4f}"


def _last_line(measures: Measures) -> str:
    return (measures.directory / "log").read_text().splitlines()[-1]


def _cells(measures: Measures, label: str) -> Iterator[str]:
    for measure, digits in ((measures.cpu, 1), (measures.seconds, 1)):
        plain, ours = measure(f"plain {label}"), measure(f"ours {label}")
        yield f"{plain:.{digits}f} s, {ours:.{digits}f} s"
        yield f"{ours / plain:.2f}"
    plain, ours = (measures.peak(f"{program} {label}") / MB for program in ("plain", "ours"))
    yield f"{plain:.0f} MB, {ours:.0f} MB"
    yield f"{ours / plain:.2f}"


if __name__ == "__main__":
    main()
