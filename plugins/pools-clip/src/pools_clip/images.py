"""Images in parquet files, as one tensor of bytes a split.

Files are those of the `datasets` library: a column `image` of {bytes, path} and a column `label`.
They are read row group by row group, only the columns needed, and decoded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps

from fusion_adapting import on_cores
from fusion_core import note
from fusion_core.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pools_clip.preprocessor import Preprocessor

_ROWS = 64


@dataclass(frozen=True)
class Images:
    """Decoded images, uint8 of shape (images, channels, height, width), and their labels."""

    pixels: torch.Tensor
    #: int64 of shape (images,); None where they were not to be read
    labels: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.pixels)


def count_rows(paths: Sequence[str], limit: int | None = None) -> int:
    """Return how many rows parquet files have together, at most `limit`.

    Raises `FusionError` naming a file that is not such a table.
    """
    count = 0
    for path in paths:
        with _opened(path, []) as file:
            count += file.metadata.num_rows
    return min(count, limit or count)


def read_images(  # noqa: PLR0913 - what is read, of which columns, and where to
    path: str,
    preprocessor: Preprocessor,
    *,
    classes: int | None,
    limit: int | None = None,
    columns: tuple[str, str] = ("image", "label"),
    into: torch.Tensor | None = None,
) -> Images:
    """Read a parquet file, or its first `limit` rows; without `classes`, no labels are read.

    Pixels are written to `into` where it is given: as many rows as are read. Raises `FusionError`
    naming the file, and the row counted from 0, for a file that is not such a table, an image that
    cannot be decoded or does not fit the model, a label out of range.
    """
    image, label = columns
    wanted = [image] if classes is None else [image, label]

    def decoded(part: tuple[int, pa.RecordBatch]) -> tuple[int, Images]:
        row, batch = part
        labels = None if classes is None else _labels(batch.column(label), classes, path, row)
        images = _decoded(batch.column(image), path, row)
        return row, Images(preprocessor.fitted(images, f"{path}, row", row), labels)

    with _opened(path, wanted) as file:
        count = min(file.metadata.num_rows, limit or file.metadata.num_rows)
        if not count:
            raise FusionError(f"{path} holds no images")
        shape = (count, *preprocessor.shape)
        pixels = torch.empty(shape, dtype=torch.uint8) if into is None else into
        labels: list[torch.Tensor] = []
        for row, part in on_cores(decoded, _rows(file, path, wanted, count)):
            pixels[row : row + len(part)] = part.pixels
            labels += [] if part.labels is None else [part.labels]
            note(f"{Path(path).name}: {row + len(part):,} of {count:,} images decoded")
    return Images(pixels, torch.cat(labels) if labels else None)


def _opened(path: str, columns: list[str]) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise FusionError(f"{path} is not a readable parquet file: {error}") from error
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        raise FusionError(
            f"{path} has no column {missing[0]!r}, only {', '.join(file.schema_arrow.names)}",
            hint="Write it with the datasets library: columns image (Image) and label (int64).",
        )
    return file


def _rows(
    file: pq.ParquetFile, path: str, columns: list[str], count: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    row = 0
    try:
        for batch in file.iter_batches(_ROWS, columns=columns):
            yield row, batch.slice(0, count - row)
            row += len(batch)
            if row >= count:
                return
    except (OSError, pa.ArrowException) as error:
        raise FusionError(f"{path} cannot be read from row {row} on: {error}") from error


def _decoded(column: pa.Array, path: str, row: int) -> list[Image.Image]:
    return [
        _image(value, f"{path}, row {number}")
        for number, value in enumerate(column.to_pylist(), row)
    ]


def _image(value: Any, place: str) -> Image.Image:  # noqa: ANN401 - whatever the column holds
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise FusionError(
            f"{place}: the image has no bytes",
            hint="Embed the files before writing; in the datasets library: embed_table_storage.",
        )
    try:
        image = Image.open(BytesIO(data))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # as the datasets library decodes it
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FusionError(f"{place}: the image cannot be decoded: {error}") from error
    return image


def _labels(column: pa.Array, classes: int, path: str, row: int) -> torch.Tensor:
    labels = column.to_pylist()
    for number, label in enumerate(labels, row):
        if not isinstance(label, int) or not 0 <= label < classes:
            raise FusionError(
                f"{path}, row {number}: label {label} is none of 0 to {classes - 1}",
                hint="The task needs one classname for every label.",
            )
    return torch.tensor(labels, dtype=torch.int64)  # pcam stores False and True
