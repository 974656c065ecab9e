"""lm-evaluation-harness as a process: a request in JSON, an answer in JSON, what it says as notes.

It is never imported here. A python runs `runner.py`: this one, or that of an environment
which may have other versions of everything.
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
_LONGEST_NOTE = 100
#: How the runner's line begins that says that a task is done.
_MEASURED = "lm-eval has measured"


@dataclass(frozen=True)
class Harness:
    """The harness in the environment of a python; None is the one that runs this."""

    python: str | None = None

    def done(
        self, request: Mapping[str, Any], *, measured: Callable[[], object] = int
    ) -> dict[str, Any]:
        """Have the runner do what is requested, and return what came of it.

        `measured` is called for each task that is done.

        Raises `PluginError` where there is no harness, `HubError` where data is on the hub and that
        cannot be reached, other `FusionError`s for what the harness does not do, or died of.
        """
        with TemporaryDirectory(prefix="fuse-lm-eval-") as folder:
            program, asked, answer = (
                Path(folder, name) for name in ("run.py", "request.json", "answer.json")
            )
            program.write_bytes(files("pools_lm.harness").joinpath("runner.py").read_bytes())
            asked.write_text(json.dumps(request), encoding="utf-8")
            self._run([str(each) for each in (program, asked, answer)], answer, measured)
            content: dict[str, Any] = json.loads(answer.read_bytes())
        if "error" in content:
            raise self._refusal(**content["error"])
        done: dict[str, Any] = content["done"]
        return done

    def _run(self, arguments: list[str], answer: Path, measured: Callable[[], object]) -> None:
        """Run the program to its end; raises `FusionError` if it leaves no answer."""
        last: deque[str] = deque(maxlen=_LAST_LINES)
        with self._started(arguments) as process:
            assert process.stdout is not None  # noqa: S101 - a pipe was asked for
            try:
                for line in filter(None, map(str.strip, process.stdout)):
                    last.append(line)
                    if line.startswith(_MEASURED):
                        measured()
                    note(line[:_LONGEST_NOTE])
            except BaseException:
                process.kill()
                raise
        if process.returncode or not answer.is_file():
            raise self._died(process.returncode, list(last))

    def _started(self, arguments: list[str]) -> subprocess.Popen[str]:
        try:
            return subprocess.Popen(  # noqa: S603 - the user names the python
                [self.python or sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise RecipeError(
                f"task_pool.python: {self.python} cannot be run: {error.strerror}",
                hint="Name the python of an environment that has lm-eval: ENVIRONMENT/bin/python.",
            ) from error

    def _died(self, code: int, last: list[str]) -> FusionError:
        if code == -signal.SIGALRM:
            return FusionError(
                "a chat template or tokenizer took too long in lm-eval, which was ended",
                hint="It came with the model, and may be hostile: look at it. Without a template: "
                "--set task_pool.apply_chat_template=false.",
            )
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        lines = "\n".join(f"  {each}" for each in last)
        return FusionError(
            f"lm-eval {how} and gave no answer:\n{lines}",
            hint="It ran out of memory, if anything: lower task_pool.batch_size."
            if code < 0
            else f"It was run by {self._name}.",
        )

    def _refusal(self, kind: str, message: str) -> FusionError:
        match kind:
            case "missing" | "old":
                what = "is too old" if kind == "old" else "is not all there"
                return PluginError(
                    f"lm-eval {what} for {self._name}: {message}", hint=self._how_to_install
                )
            case "device":
                return RecipeError(
                    f"lm-eval cannot measure there: {message}",
                    hint="Name another task_pool.device, or another task_pool.python.",
                )
            case "network":
                return HubError(
                    f"lm-eval has no data for {message}",
                    hint="Run it once where the hub can be reached: its data is then in the cache "
                    "of the datasets library (HF_HOME).",
                )
            case _:
                return FusionError(
                    f"lm-eval has no data for {message}",
                    hint="Look at what the task's configuration says of its data.",
                )

    @property
    def _name(self) -> str:
        return self.python or sys.executable

    @property
    def _how_to_install(self) -> str:
        if self.python is None:
            return (
                "Install it: pip install 'pools-lm[lm-eval]'; or name the python of another "
                "environment that has it: task_pool.python."
            )
        return f"Install it there: {self.python} -m pip install 'lm-eval[hf]>=0.4.13,<0.5'."
