"""A model as a directory that transformers loads, whatever it is measured from."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fusion_core.errors import RecipeError
from fusion_core.weights import as_weights, materialise, staged
from pools_lm.written import has_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from fusion_core import WeightSource
    from fusion_core.commands import Subject
    from fusion_core.weights import Files

_SHARD_SIZE = 5_000_000_000


@contextmanager
def loadable(subject: Subject, base: WeightSource | None, assets: Files) -> Iterator[Path]:
    """Yield the subject's directory or, where it has none, one that is gone afterwards.

    `assets` are the files that a model needs beside its weights, for one that has not got them.
    Raises `RecipeError` for a model without a tokenizer, and for a live one that cannot be saved.
    """
    if subject.path is not None and has_tokenizer(_files_in(subject.path)):
        yield subject.path
        return
    with TemporaryDirectory(prefix="fuse-lm-eval-") as folder:
        made = Path(folder, "model")
        _put_weights(subject, base, made)
        _add(assets, made)
        if not has_tokenizer(_files_in(made)):
            raise RecipeError(
                "lm-eval needs a tokenizer, and there is none beside the models",
                hint="Put one beside the base's weights; in Python, first bind(pool) the tasks.",
            )
        yield made


def _put_weights(subject: Subject, base: WeightSource | None, made: Path) -> None:
    if subject.path is not None:
        made.mkdir()
        for name, path in _files_in(subject.path).items():
            (made / name).symlink_to(path.resolve())
    elif subject.weights is not None:
        with ThreadPoolExecutor() as threads, staged(made) as staging:
            weights = as_weights(subject.weights, base)
            materialise(weights, staging, shard_size=_SHARD_SIZE, executor=threads)
            staging.commit(overwrite=False)
    else:
        _saver(subject.model)(made)


def _saver(model: nn.Module) -> Any:  # noqa: ANN401 - transformers' method
    """Return what saves a live model, unless more than its weights makes it what it is."""
    is_hooked = any(module._forward_hooks for module in model.modules())  # noqa: SLF001 - torch's own
    save = getattr(model, "save_pretrained", None)
    if save is None or is_hooked:
        what = "it has hooks" if is_hooked else f"a {type(model).__name__} is not transformers'"
        raise RecipeError(
            f"lm-eval measures models that can be saved, and {what}",
            hint="Measure it with another task pool.",
        )
    return save


def _add(assets: Files, made: Path) -> None:
    for name, content in assets.items():
        path = made / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                shutil.copyfile(content, path)


def _files_in(directory: Path) -> dict[str, Path]:
    return {path.name: path for path in directory.iterdir() if path.is_file()}
