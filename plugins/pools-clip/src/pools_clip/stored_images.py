"""A split's images, decoded: in memory, or once and for all into files that are mapped into it."""

from __future__ import annotations

import math
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import PIL
import torch

from fusion_core.files import allocate
from pools_clip.images import Images, count_rows, read_images
from pools_clip.kept import kept, place_of, write_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core import Split
    from pools_clip.data_sets import DataSet
    from pools_clip.preprocessor import Preprocessor

_KIND = "images"
_PIXELS, _LABELS = "pixels.uint8", "labels.int64"
#: Counted up when what is written changes: what an earlier version kept is then decoded anew.
_FORMAT = 2


def images_of(
    data: DataSet,
    split: Split,
    preprocessor: Preprocessor,
    *,
    labeled: bool = True,
    limit: int | None = None,
) -> Images:
    """Return a split's images, or its first `limit`; those of a commit are decoded once.

    Raises as `read_images` does, and `DiskError` where decoded images do not fit on the disk.
    """
    classes = len(data.classnames) if labeled else None
    identity = data.identity(split)
    if identity is None:
        return _read(data.files(split, limit), data, preprocessor, classes, limit)
    key = _key(identity, preprocessor, classes, limit)
    make = partial(_write, data, split, preprocessor, classes, limit)
    return _mapped(kept(_KIND, key, make), preprocessor, labeled=labeled)


def bytes_to_store(
    data: DataSet, split: Split, preprocessor: Preprocessor, *, limit: int | None = None
) -> int:
    """Return what decoding a labeled split will take on the disk.

    0 where that is done or not kept, and where nobody knows how many images there are.
    """
    identity, classes = data.identity(split), len(data.classnames)
    if identity is None:
        return 0
    if place_of(_KIND, _key(identity, preprocessor, classes, limit)).is_dir():
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


def _write(  # noqa: PLR0913, PLR0917 - what is read, how, and where to
    data: DataSet,
    split: Split,
    preprocessor: Preprocessor,
    classes: int | None,
    limit: int | None,
    directory: Path,
) -> None:
    files = data.files(split, limit)
    count = count_rows(files, limit)
    pixels = _room(directory / _PIXELS, (count, *preprocessor.shape))
    images = _read(files, data, preprocessor, classes, limit, pixels)
    if images.labels is not None:
        write_file(directory / _LABELS, images.labels.numpy().tobytes())


def _read(  # noqa: PLR0913, PLR0917 - what is read, and how
    files: list[str],
    data: DataSet,
    preprocessor: Preprocessor,
    classes: int | None,
    limit: int | None,
    into: torch.Tensor | None = None,
) -> Images:
    """Read files one after the other, into memory unless it is said where to."""
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


def _room(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """Map a new file; a full disk is found here, not by a signal while it is being written."""
    size = math.prod(shape)
    with path.open("xb") as stream:
        if size:
            allocate(stream.fileno(), size, fits=size <= shutil.disk_usage(path.parent).free)
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8).reshape(shape)


def _mapped(directory: Path, preprocessor: Preprocessor, *, labeled: bool) -> Images:
    size = (directory / _PIXELS).stat().st_size
    flat = torch.from_file(str(directory / _PIXELS), shared=False, size=size, dtype=torch.uint8)
    pixels = flat.reshape(-1, *preprocessor.shape)
    if not labeled:
        return Images(pixels, None)
    path = str(directory / _LABELS)
    labels = torch.from_file(path, shared=False, size=len(pixels), dtype=torch.int64)
    return Images(pixels, labels)
