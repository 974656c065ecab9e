"""Decoded images of a split: in memory, or in cached files that are mapped into memory."""

from __future__ import annotations

import math
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import PIL
import torch

from fusion_core.files import allocate
from pools_clip.cache import cache_path, cached_directory, write_file
from pools_clip.images import Images, count_rows, read_images

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core import Split
    from pools_clip.data_sets import DataSet
    from pools_clip.preprocessor import Preprocessor

_KIND = "images"
_PIXELS, _LABELS = "pixels.uint8", "labels.int64"
#: Increase it when the files' content changes, so that older caches are ignored.
_FORMAT = 2


def load_images(
    data: DataSet,
    split: Split,
    preprocessor: Preprocessor,
    *,
    labeled: bool = True,
    limit: int | None = None,
) -> Images:
    """Return a split's images, or its first `limit`. Those of a commit are decoded once and cached.

    Raises the errors of `read_images`, and `DiskError` if decoded images do not fit on the disk.
    """
    classes = len(data.classnames) if labeled else None
    identity = data.identity(split)
    if identity is None:
        return _read(data.files(split, limit), data, preprocessor, classes, limit)
    key = _key(identity, preprocessor, classes, limit)
    fill = partial(_write, data, split, preprocessor, classes, limit)
    return _map_cached(cached_directory(_KIND, key, fill), preprocessor, labeled=labeled)


def bytes_to_store(
    data: DataSet, split: Split, preprocessor: Preprocessor, *, limit: int | None = None
) -> int:
    """Return the disk space, in bytes, that decoding a labeled split needs.

    Return 0 if it is already decoded, is not cached, or has an unknown number of images.
    """
    identity, classes = data.identity(split), len(data.classnames)
    if identity is None:
        return 0
    if cache_path(_KIND, _key(identity, preprocessor, classes, limit)).is_dir():
        return 0
    count = data.count(split) or 0
    return min(count, limit or count) * math.prod(preprocessor.shape)


def _key(
    identity: Mapping[str, Any], preprocessor: Preprocessor, classes: int | None, limit: int | None
) -> dict[str, Any]:
    return {
        **identity,
        "format": _FORMAT,
        "preprocessor": preprocessor.identity,
        "classes": classes,
        "limit": limit,
        "pillow": PIL.__version__,
    }


def _write(  # noqa: PLR0913, PLR0917 - the images, their format, and the destination
    data: DataSet,
    split: Split,
    preprocessor: Preprocessor,
    classes: int | None,
    limit: int | None,
    directory: Path,
) -> None:
    files = data.files(split, limit)
    count = count_rows(files, limit)
    pixels = _create_pixels(directory / _PIXELS, (count, *preprocessor.shape))
    images = _read(files, data, preprocessor, classes, limit, pixels)
    if images.labels is not None:
        write_file(directory / _LABELS, images.labels.numpy().tobytes())


def _read(  # noqa: PLR0913, PLR0917 - the images and their format
    files: list[str],
    data: DataSet,
    preprocessor: Preprocessor,
    classes: int | None,
    limit: int | None,
    into: torch.Tensor | None = None,
) -> Images:
    """Read files in order, into `into` or into new memory."""
    reader = partial(read_images, preprocessor=preprocessor, classes=classes, columns=data.columns)
    if len(files) == 1 and into is None:
        return reader(files[0], limit=limit)
    count = count_rows(files, limit)
    pixels = torch.empty((count, *preprocessor.shape), dtype=torch.uint8) if into is None else into
    labels, start = [], 0
    for file in files:
        rows = min(count_rows([file]), count - start)
        if rows:
            part = reader(file, limit=rows, into=pixels[start : start + rows])
            labels += [] if part.labels is None else [part.labels]
        start += rows
    return Images(pixels, torch.cat(labels) if labels else None)


def _create_pixels(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """Map a new file, allocated first so that a full disk raises an error and not a signal."""
    size = math.prod(shape)
    with path.open("xb") as stream:
        if size:
            allocate(stream.fileno(), size, fits=size <= shutil.disk_usage(path.parent).free)
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8).reshape(shape)


def _map_cached(directory: Path, preprocessor: Preprocessor, *, labeled: bool) -> Images:
    size = (directory / _PIXELS).stat().st_size
    flat = torch.from_file(str(directory / _PIXELS), shared=False, size=size, dtype=torch.uint8)
    pixels = flat.reshape(-1, *preprocessor.shape)
    if not labeled:
        return Images(pixels, None)
    path = str(directory / _LABELS)
    labels = torch.from_file(path, shared=False, size=len(pixels), dtype=torch.int64)
    return Images(pixels, labels)
