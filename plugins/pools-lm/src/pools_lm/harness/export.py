"""Export a model to a directory that transformers can load."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fusion_core.errors import RecipeError
from fusion_core.weights import as_weights, materialise, stage_output
from pools_lm.tokenizer_files import has_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from fusion_core import WeightSource
    from fusion_core.commands import Subject
    from fusion_core.weights import Files

_SHARD_SIZE = 5_000_000_000


@contextmanager
def model_directory(subject: Subject, base: WeightSource | None, assets: Files) -> Iterator[Path]:
    """Yield the subject's own directory, or a temporary one with the model.

    `assets` are the side files of a model that has none. Raises `RecipeError` for a model without a
    tokenizer, and for a live model that cannot be saved.
    """
    if subject.path is not None and has_tokenizer(_list_files(subject.path)):
        yield subject.path
        return
    with TemporaryDirectory(prefix="fuse-lm-eval-") as temporary:
        directory = Path(temporary, "model")
        _export_weights(subject, base, directory)
        for name, content in assets.items():
            path = directory / name
            if path.exists():
                continue
            path.parent.mkdir(exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                shutil.copyfile(content, path)
        if not has_tokenizer(_list_files(directory)):
            raise RecipeError(
                "lm-eval needs a tokenizer, but the models have none",
                hint="Copy one next to the base's weights. In Python, bind(pool) the tasks first.",
            )
        yield directory


def _export_weights(subject: Subject, base: WeightSource | None, directory: Path) -> None:
    if subject.path is not None:
        directory.mkdir()
        for name, path in _list_files(subject.path).items():
            (directory / name).symlink_to(path.resolve())
    elif subject.weights is not None:
        with ThreadPoolExecutor() as threads, stage_output(directory) as staging:
            weights = as_weights(subject.weights, base)
            materialise(weights, staging, shard_size=_SHARD_SIZE, executor=threads)
            staging.commit(overwrite=False)
    else:
        _find_saver(subject.model)(directory)


def _find_saver(model: nn.Module) -> Any:  # noqa: ANN401 - transformers' method
    """Return the method that saves a live model; raise `RecipeError` if hooks change the model."""
    is_hooked = any(module._forward_hooks for module in model.modules())  # noqa: SLF001 - torch's own
    save = getattr(model, "save_pretrained", None)
    if save is None or is_hooked:
        reason = (
            "this one has hooks"
            if is_hooked
            else f"a {type(model).__name__} is not a transformers model"
        )
        raise RecipeError(
            f"lm-eval needs a model that can be saved: {reason}",
            hint="Evaluate it with another task pool.",
        )
    return save


def _list_files(directory: Path) -> dict[str, Path]:
    return {path.name: path for path in directory.iterdir() if path.is_file()}
