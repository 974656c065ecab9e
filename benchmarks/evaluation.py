"""Compare `fuse evaluate` with the same evaluation in plain transformers.

    python benchmarks/evaluation.py MODEL TASKS --tasks odd,dates,records --repeats 3

MODEL is the directory of a language model, and TASKS a JSON file with the options of a task pool
`lm-tasks`. A task can also be a text to score, `{"kind": "perplexity", "text": "...", ...}`. Both
programs measure each task in turn, in the stored dtype (`auto`) and in fp32, on the same examples
and with the same batch size. The start is the same command with one example: imports, reading the
model, and for `fuse` the plugins and the process in which the tokenizer runs. The table has its
processor time, the ratio ours / plain of the processor time and wall time of all other examples,
the peak memory of the whole processes, and both scores. Nothing is
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


def main() -> None:
    """Measure, and print the table."""
    options = _options()
    directory = Path(tempfile.mkdtemp(prefix="fuse-bench-"))
    measures = Measures(directory)
    try:
        data = _first_lines(options, directory, options.limit)
        first = _first_lines(options, directory / "first", 1)
        heads = ["task", "dtype", "start: plain, ours", "CPU: plain, ours", "ratio"]
        heads += ["wall: plain, ours", "ratio", "peak: plain, ours", "ratio", "score: plain, ours"]
        print(headings(heads))
        for name, task in data.items():
            for dtype in options.dtypes.split(","):
                for _ in range(options.repeats):
                    starts, loops = (f"start-up {{}}-{name}-{dtype}", f"{{}}-{name}-{dtype} loop")
                    _ = [*_measure(measures, options, starts, name, first[name], dtype)]
                    scores = [*_measure(measures, options, loops, name, task, dtype)]
                print(row([name, dtype, *_cells(measures, f"{name}-{dtype}"), ", ".join(scores)]))
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


def _first_lines(options: argparse.Namespace, directory: Path, limit: int) -> dict[str, Any]:
    """Return the tasks with files that hold their first examples."""
    directory.mkdir(exist_ok=True)
    known: dict[str, Any] = json.loads(options.pool.read_text())["datasets"]
    data = {}
    for name in options.tasks.split(","):
        task = known[name]
        lines = Path(task["test"]).read_text().splitlines()[:limit]
        file = directory / f"{name}.jsonl"
        file.write_text("\n".join(lines))
        others = {key: value for key, value in task.items() if key not in {"unlabeled", "train"}}
        data[name] = {**others, "test": str(file)}
    return data


def _measure(  # noqa: PLR0913, PLR0917 - the programs, the task, and how to measure it
    measures: Measures,
    options: argparse.Namespace,
    label: str,
    name: str,
    task: Any,  # noqa: ANN401
    dtype: str,
) -> Iterator[str]:
    """Measure a task by both programs, and yield the scores."""
    model, size, tasks = str(options.model.resolve()), options.batch_size, json.dumps({name: task})
    command = [sys.executable, str(CHILD), model, tasks, size, dtype]
    measures.measure(label.format("plain"), command)
    yield f"{json.loads(_last_line(measures))[name]:.4f}"
    fuse = str(Path(sys.executable).with_name("fuse"))
    sets = {"model_pool.models": json.dumps({"m": model}), "task_pool.datasets": tasks}
    sets |= {"task_pool.batch_size": size, "task_pool.dtype": dtype}
    flags = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    command = [fuse, "evaluate", model, "--pool", "causal-lm", "--task-pool", "lm-tasks", *flags]
    measures.measure(label.format("ours"), [*command, "--fresh", "-q", "--json"])
    report = json.loads((measures.directory / "log").read_text())
    yield f"{next(iter(report['tasks'][name].values())):.4f}"


def _last_line(measures: Measures) -> str:
    return (measures.directory / "log").read_text().splitlines()[-1]


def _cells(measures: Measures, label: str) -> Iterator[str]:
    programs = (f"plain-{label}", f"ours-{label}")
    starts = [min(usage.cpu for usage in measures.taken[f"start-up {p}"]) for p in programs]
    yield ", ".join(f"{seconds:.1f} s" for seconds in starts)
    for measure in (measures.cpu, measures.seconds):
        plain, ours = (measure(f"{program} loop") for program in programs)
        yield from (f"{plain:.1f} s, {ours:.1f} s", f"{ours / plain:.2f}")
    plain, ours = (measures.peak(f"{program} loop") / MB for program in programs)
    yield from (f"{plain:.0f} MB, {ours:.0f} MB", f"{ours / plain:.2f}")


if __name__ == "__main__":
    main()
