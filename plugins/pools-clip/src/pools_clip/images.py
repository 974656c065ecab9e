"""Images in parquet files, decoded into one tensor of bytes per split.

The files are those of the `datasets` library: a column `image` of {bytes, path} and a column
`label`. Only the needed columns are read, in batches of rows.
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

from fusion_adapting import map_on_cores
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
    #: int64 of shape (images,); None if they were not read
    labels: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.pixels)


def count_rows(paths: Sequence[str], limit: int | None = None) -> int:
    """Return the total number of rows in parquet files, at most `limit`.

    Raises `FusionError` naming a file that is not parquet.
    """
    count = 0
    for path in paths:
        with _open(path, []) as file:
            count += file.metadata.num_rows
    return min(count, limit or count)


def read_images(  # noqa: PLR0913 - the file, its columns, and the destination
    path: str,
    preprocessor: Preprocessor,
    *,
    classes: int | None,
    limit: int | None = None,
    columns: tuple[str, str] = ("image", "label"),
    into: torch.Tensor | None = None,
) -> Images:
    """Read a parquet file, or its first `limit` rows; read labels only if `classes` is given.

    Pixels are written to `into`, which has one row per image, if it is given. Raises `FusionError`
    naming the file and the row, from 0, for an invalid table, an image that cannot be decoded or
    does not fit the model, and a label that is out of range.
    """
    image, label = columns
    wanted = [image] if classes is None else [image, label]

    def decode(part: tuple[int, pa.RecordBatch]) -> tuple[int, Images]:
        row, batch = part
        labels = None if classes is None else _labels(batch.column(label), classes, path, row)
        images = [
            _decode(value, f"{path}, row {number}")
            for number, value in enumerate(batch.column(image).to_pylist(), row)
        ]
        return row, Images(preprocessor.resize(images, f"{path}, row", row), labels)

    with _open(path, wanted) as file:
        count = min(file.metadata.num_rows, limit or file.metadata.num_rows)
        if not count:
            raise FusionError(f"{path} contains no images")
        shape = (count, *preprocessor.shape)
        pixels = torch.empty(shape, dtype=torch.uint8) if into is None else into
        labels: list[torch.Tensor] = []
        for row, part in map_on_cores(decode, _batches(file, path, wanted, count)):
            pixels[row : row + len(part)] = part.pixels
            labels += [] if part.labels is None else [part.labels]
            note(f"{Path(path).name}: {row + len(part):,} of {count:,} images decoded")
    return Images(pixels, torch.cat(labels) if labels else None)


def _open(path: str, columns: list[str]) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise FusionError(f"invalid parquet file {path}: {error}") from error
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        raise FusionError(
            f"{path}: missing column {missing[0]!r}; columns: {', '.join(file.schema_arrow.names)}",
            hint="Write it with the datasets library: columns image (Image) and label (int64).",
        )
    return file


def _batches(
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
        raise FusionError(f"cannot read {path} from row {row} on: {error}") from error


def _decode(value: Any, location: str) -> Image.Image:  # noqa: ANN401 - any value of the column
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise FusionError(
            f"{location}: the image has no bytes",
            hint="Embed the files before writing: embed_table_storage of the datasets library.",
        )
    try:
        image = Image.open(BytesIO(data))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # as the datasets library does
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FusionError(f"{location}: the image cannot be decoded: {error}") from error
    return image


def _labels(column: pa.Array, classes: int, path: str, row: int) -> torch.Tensor:
    labels = column.to_pylist()
    for number, label in enumerate(labels, row):
        if not isinstance(label, int):
            raise FusionError(
                f"{path}, row {number}: invalid label {label!r}, expected an integer",
                hint="Store the labels as integers, from 0 on in the order of the classnames.",
            )
        if not 0 <= label < classes:
            raise FusionError(
                f"{path}, row {number}: invalid label {label}, expected 0 to {classes - 1}",
                hint="The task needs one classname per label.",
            )
    return torch.tensor(labels, dtype=torch.int64)  # pcam stores booleans
