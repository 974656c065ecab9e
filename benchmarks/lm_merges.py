"""The merges that `lm.py` measures, from the page cache and from the disk."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_paper import Line, Rate
from measuring import Measures, child

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llama import Llama

CHILDREN = Path(__file__).with_name("lm_children.py")
EXPERTS = ("x", "y", "z", "v", "w")
RANK = 16
BARE = "bare torch"


@dataclass(frozen=True)
class Kind:
    """One kind of merge."""

    name: str
    algorithm: str
    #: the program whose start-up it shares
    program: str = "plain"
    #: the prefix of the experts' directories, and options of the pool
    prefix: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    has_base: bool = True
    passes: int = 1
    rank: int = 0

    def label(self, experts: int) -> str:
        """Return the label of a merge of this many experts."""
        return f"{self.program} {self.name}, {experts}"


ARITHMETIC = Kind("task arithmetic", "task-arithmetic")
PLAIN = (
    Kind("linear", "simple-average", has_base=False),
    ARITHMETIC,
    Kind("TIES", "ties", passes=2),
)
TOKENS = Kind("other tokenizers", "task-arithmetic", "tokens", "other-", {"tokenizer": "union"})
LORA = Kind("LoRA", "task-arithmetic", "lora", "lora-", rank=RANK)


class Bench(Measures):
    """Models on disk, the merges of them, and the measurements."""

    def __init__(self, directory: Path, model: Llama, experts: int) -> None:
        super().__init__(directory)
        self.model = model
        self.experts = EXPERTS[:experts]
        self.shape = json.dumps(dataclasses.astuple(model))

    @property
    def counts(self) -> range:
        """The numbers of experts to merge."""
        return range(1, len(self.experts) + 1)

    def make(self, what: str, *arguments: str) -> None:
        """Build models in a separate process."""
        child(CHILDREN, what, str(self.directory), *arguments)

    def paths(self, kind: Kind, experts: int) -> dict[str, str]:
        """Return the inputs of a merge, the base first."""
        names = [f"{kind.prefix}{name}" for name in self.experts[:experts]]
        return {name: str(self.directory / name) for name in (*["base"] * kind.has_base, *names)}

    def merge(self, kind: Kind, experts: int) -> None:
        """Merge this many experts."""
        models = self.paths(kind, experts)
        base = {"base": models.pop("base")} if kind.has_base else {}
        pool = {"name": "causal-lm", **kind.options, **base, "models": models}
        recipe = {"algorithm": {"name": kind.algorithm}, "model_pool": pool}
        self.fuse_run(kind.program, f"{kind.name}, {experts}", recipe, "--no-eval")

    def cold(self, kind: Kind) -> None:
        """Read all inputs from the disk, write an output, then merge from the disk."""
        experts = len(self.experts)
        files = [f"{path}/model.safetensors" for path in self.paths(kind, experts).values()]
        _evict(files)
        copy = ["sh", "-c", 'cat "$@" > /dev/null', "sh", *files]
        self.measure(f"read {kind.name}", copy)
        self.copy(f"write {kind.name}")
        _evict(files)
        self.merge(dataclasses.replace(kind, program="cold"), experts)

    def above(self, label: str, bare: str = BARE) -> int:
        """Return a peak of memory above that of a bare process, in bytes."""
        return self.peak(label) - self.peak(bare)

    def rate(self, kind: Kind) -> Rate:
        """Return the cost of a kind of merge per byte of its output."""
        cpu = Line.through({n: self.cpu(kind.label(n)) for n in self.counts})
        memory = Line.through({n: self.above(kind.label(n)) for n in self.counts})
        return Rate(cpu / self.model.bytes, memory, kind.has_base, kind.passes, kind.rank)

    def rate_of_tokens(self) -> Rate:
        """Return the cost of task arithmetic, plus the cost per row of different tokenizers."""
        more = {n: self.cpu(TOKENS.label(n)) - self.cpu(ARITHMETIC.label(n)) for n in self.counts}
        rows = Line.through(more) / (2 * self.model.vocabulary)
        memory = self.rate(TOKENS).memory
        return dataclasses.replace(self.rate(ARITHMETIC), rows=rows, memory=memory)


def _evict(files: Iterable[str]) -> None:
    """Evict files from the page cache."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
