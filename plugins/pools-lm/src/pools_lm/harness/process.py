"""Run lm-evaluation-harness in a child process, with a JSON request and a JSON answer.

The harness is never imported here. A Python interpreter runs `runner.py`. It may belong to another
environment with other versions of every package. The child's output becomes progress notes.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fusion_core import note
from fusion_core.errors import FusionError, HubError, PluginError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LAST_LINES = 12
_MAX_NOTE = 100
#: Prefix of the runner's line after each finished task.
_TASK_FINISHED = "lm-eval has measured"


@dataclass(frozen=True)
class Harness:
    """The harness in the environment of an interpreter; None is the current one."""

    python: str | None = None

    def request(
        self, request: Mapping[str, Any], *, task_finished: Callable[[], object] = int
    ) -> dict[str, Any]:
        """Send a request to the runner, and return its answer.

        `task_finished` is called after each task. Raises `PluginError` without a suitable harness,
        `HubError` if data cannot be downloaded, and another `FusionError` for other failures.
        """
        with TemporaryDirectory(prefix="fuse-lm-eval-") as directory:
            program, request_file, answer_file = (
                Path(directory, name) for name in ("run.py", "request.json", "answer.json")
            )
            program.write_bytes(files("pools_lm.harness").joinpath("runner.py").read_bytes())
            request_file.write_text(json.dumps(request), encoding="utf-8")
            self._run([program, request_file, answer_file], answer_file, task_finished)
            answer: dict[str, Any] = json.loads(answer_file.read_bytes())
        if "error" in answer:
            raise self._refusal(**answer["error"])
        done: dict[str, Any] = answer["done"]
        return done

    def _run(
        self, arguments: list[Path], answer_file: Path, task_finished: Callable[[], object]
    ) -> None:
        """Run the program; raise `FusionError` if it leaves no answer."""
        last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        with self._start(arguments) as process:
            assert process.stdout is not None  # noqa: S101 - stdout is a pipe
            try:
                for line in filter(None, map(str.strip, process.stdout)):
                    last_lines.append(line)
                    if line.startswith(_TASK_FINISHED):
                        task_finished()
                    note(line[:_MAX_NOTE])
            except BaseException:
                process.kill()
                raise
        if process.returncode or not answer_file.is_file():
            raise self._failure(process.returncode, list(last_lines))

    def _start(self, arguments: list[Path]) -> subprocess.Popen[str]:
        try:
            return subprocess.Popen(  # noqa: S603 - the user names the interpreter
                [self._interpreter, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise RecipeError(
                f"task_pool.python: cannot run {self.python}: {error.strerror}",
                hint="Name the Python of an environment that has lm-eval: ENVIRONMENT/bin/python.",
            ) from error

    def _failure(self, code: int, last_lines: list[str]) -> FusionError:
        if code == -signal.SIGALRM:
            return FusionError(
                "lm-eval was stopped, because a chat template or tokenizer exceeded its time limit",
                hint="It came with the model, and may be hostile: look at it. To use no template: "
                "--set task_pool.apply_chat_template=false.",
            )
        ending = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        lines = "\n".join(f"  {line}" for line in last_lines)
        return FusionError(
            f"lm-eval {ending} and gave no answer:\n{lines}",
            hint="The most likely cause is a lack of memory: lower task_pool.batch_size."
            if code < 0
            else f"The interpreter was {self._interpreter}.",
        )

    def _refusal(self, kind: str, message: str) -> FusionError:
        match kind:
            case "missing" | "old":
                problem = "is too old" if kind == "old" else "is not completely installed"
                hint = (
                    "Install it: pip install 'pools-lm[lm-eval]'; or name the Python of another "
                    "environment that has it: task_pool.python."
                    if self.python is None
                    else f"Install it there: {self.python} -m pip install "
                    "'lm-eval[hf]>=0.4.13,<0.5'."
                )
                return PluginError(
                    f"lm-eval {problem} for {self._interpreter}: {message}", hint=hint
                )
            case "device":
                return RecipeError(
                    f"lm-eval cannot use this device: {message}",
                    hint="Name another task_pool.device, or another task_pool.python.",
                )
            case "network":
                return HubError(
                    f"lm-eval cannot download the data of {message}",
                    hint="Run it once with access to the hub. The datasets library then keeps the "
                    "data in its cache (HF_HOME).",
                )
            case _:
                return FusionError(
                    f"lm-eval cannot read the data of {message}",
                    hint="Check the data in the task's configuration.",
                )

    @property
    def _interpreter(self) -> str:
        return self.python or sys.executable
