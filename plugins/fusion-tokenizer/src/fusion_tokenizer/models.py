"""The model and the donor of a transplant, opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_core import ExecutorSpec, find_model
from fusion_core.commands import load_plugins
from fusion_core.errors import CheckpointError, RecipeError
from fusion_core.weights import find_config_value, read_config
from fusion_tokenizer.embeddings import Embeddings, find_embeddings
from fusion_tokenizer.vocabulary import (
    MOST_TOKENS,
    TOKENIZER,
    Vocabulary,
    missing_tokenizer,
    read_json,
    read_vocabulary,
)
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from fusion_core.weights import Files

CONFIG = "config.json"


@dataclass(frozen=True)
class Side:
    """A model with its tokenizer and the files next to its weights."""

    #: `model` or `donor`, and the name that the user gave
    label: str
    #: the path, or the repository at its commit
    name: str
    directory: Path
    files: Files
    vocabulary: Vocabulary
    #: None for a donor of which only the tokenizer is used
    embeddings: Embeddings | None

    def json(self, name: str) -> dict[str, Any]:
        """Return the content of a side file, empty if it is missing."""
        return read_json(self.files, name, self.label)

    @property
    def rows(self) -> int:
        """The number of rows that the embeddings have: those of all tokens, and padding.

        Raises `CheckpointError` for a `config.json` with an impossible size.
        """
        stated = find_config_value(self.json(CONFIG), frozenset({"vocab_size"})) or 0
        if not isinstance(stated, int) or not 0 <= stated <= MOST_TOKENS:
            raise CheckpointError(
                f"{self.label}: expected a vocab_size of at most {MOST_TOKENS:,} in {CONFIG}, "
                f"got {str(stated)[:40]}"
            )
        stored = 0 if self.embeddings is None else self.embeddings.rows
        return max(self.vocabulary.size, stated, stored)


@dataclass(frozen=True)
class Pair:
    """The model, the donor of the tokenizer, and an executor for the work."""

    model: Side
    donor: Side
    executor: Executor

    @property
    def embeddings(self) -> Embeddings:
        """The model's embeddings."""
        assert self.model.embeddings is not None  # noqa: S101 - a model is opened with them
        return self.model.embeddings


def open_pair(
    model: str,
    donor: str,
    *,
    with_donor_weights: bool,
    blocked: frozenset[str] = frozenset(),
    workers: int | None = None,
) -> Pair:
    """Open a model and a donor, without the plugins in `blocked`.

    Without `with_donor_weights`, the donor may be a directory that holds only a tokenizer. Raises
    `CheckpointError` for an adapter, a quantised model, a tokenizer that is missing or unreadable,
    and embeddings that are not a decoder's. Raises `RecipeError` if both tokenizers are equal.
    """
    plugins = load_plugins(blocked)
    with plugins.active():
        opened = _open(model, "model", with_embeddings=True)
        if with_donor_weights or not Path(donor).is_dir():
            given = _open(donor, "donor", with_embeddings=with_donor_weights)
        else:
            given = _open_tokenizer(donor, model)
    if opened.vocabulary.equals(given.vocabulary):
        raise RecipeError(
            f"nothing to do: {model} and {donor} have the same tokenizer",
            hint="Name a donor with another tokenizer.",
        )
    threads = plugins.find(ExecutorSpec, "threads")
    options = {} if workers is None else {"workers": workers}
    executor: Executor = threads.create(threads.load_config()(**options))
    return Pair(opened, given, executor)


def _open(name: str, role: str, *, with_embeddings: bool) -> Side:
    located = find_model(name, role)
    if located.is_delta:
        raise CheckpointError(
            f"{role}: expected a full model, found an adapter ({located.format.spec.name}): {name}",
            hint="Merge it into its base first, with fuse run or PEFT's merge_and_unload.",
        )
    pool = CheckpointsPool(CheckpointsConfig(models={role: name}))
    files, label = pool.files_of(role), f"{role} ({name})"
    embeddings = None
    if with_embeddings:
        path = located.location.directory / CONFIG  # as it is: a format may have taken keys out
        config = read_config(path) if path.is_file() else {}
        embeddings = find_embeddings(pool.experts[role], config, label)
    location, vocabulary = located.location, read_vocabulary(files, label)
    return Side(label, location.name, location.directory, files, vocabulary, embeddings)


def _open_tokenizer(directory: str, model: str) -> Side:
    """Open a directory that needs no weights; the pool reads its files in place of the model's."""
    label = f"donor ({directory})"
    if not Path(directory, TOKENIZER).is_file():
        raise missing_tokenizer({path.name for path in Path(directory).iterdir()}, label)
    pool = CheckpointsPool(CheckpointsConfig(models={"donor": model}, side_files=directory))
    files = pool.files_of("donor")
    return Side(label, directory, Path(directory), files, read_vocabulary(files, label), None)
