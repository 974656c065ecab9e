"""Options of the language pools; free of torch, so that listing them costs nothing."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from fusion_core import CheckpointsConfig, ComponentConfig, InputPath

#: The choice of a tokenizer that has every model's tokens.
UNION = "union"


class LanguageConfig(CheckpointsConfig):
    """A base and experts: paths, hub ids or recipes (from Python also live models, state dicts)."""

    tokenizer: str = "base"
    """Whose tokens the rows of embeddings and heads are: the base's, all models' (union), or those
    of the expert of this name. Its tokenizer and chat template go along."""
    new_rows: Literal["expert", "subwords", "zero"] = "expert"
    """What a model has for a token that neither it nor the base knows: the mean of the experts that
    know it, the mean of the pieces that its own tokenizer cuts the token into, or zeros."""
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None
    """Round the number of rows up to a multiple of this; default: as many as the base or expert
    whose tokenizer it is has, and more only where they do not suffice."""


class HarnessConfig(ComponentConfig):
    """Tasks of EleutherAI's lm-evaluation-harness."""

    tasks: Annotated[list[str], Field(min_length=1)]
    """Names that the harness knows, in this order: tasks, or groups that have a figure of their own
    (`lm-eval ls tasks` lists them)."""
    include_path: InputPath | None = None
    """A folder of tasks of your own, as the harness has them: YAML files, which may run code. It
    needs `--trust lm-eval-include-path`."""
    main: dict[str, str] = Field(default={})
    """A task's main metric, e.g. {hellaswag: acc_norm}; default: the first that the task lists."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """How many solved examples come before each question; default: as many as each task says."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """A quick look: only the first examples of each task, and of each member of a group."""
    apply_chat_template: bool = False
    """Ask through the models' chat template."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 8
    """How many sequences at once; auto: as many as the GPU holds."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What models are computed in; auto: the dtype that their configuration names."""
    device: str | None = None
    """Where models are measured: cpu, cuda, cuda:1, mps; default: the run's device."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """One seed for everything that is drawn; default: the harness's own, which published figures
    have (0 for Python's random, else 1234)."""
    python: InputPath | None = None
    """The python of an environment that has lm-eval; default: this one. It needs `--trust
    lm-eval-python`."""

    def needs_trust(self) -> Mapping[str, str]:
        """Return what runs code: another program, and the Python that YAML files name."""
        needs: dict[str, str] = {}
        if self.python is not None:
            needs["lm-eval-python"] = f"start the program {self.python}"
        if self.include_path is not None:
            files = f"the Python files that the YAML files in {self.include_path} name"
            needs["lm-eval-include-path"] = f"import {files}"
        return needs
