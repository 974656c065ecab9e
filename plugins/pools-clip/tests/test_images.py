"""From parquet files to pixels: the results match transformers, and errors name the row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPProcessor

from fusion_core.errors import CheckpointError, FusionError
from pools_clip.directory import ClipDirectory
from pools_clip.images import read_images
from pools_clip.preprocessor import Preprocessor

if TYPE_CHECKING:
    from collections.abc import Callable

MakeImage = "Callable[..., Image.Image]"
Rows = "Sequence[tuple[Any, Any]]"
WriteParquet = "Callable[[Path, Rows], str]"
SHAPE = (3, 8, 8)
MODES = ["RGB", "L", "RGBA", "P", "LA", "1"]


def settings(**options: Any) -> dict[str, Any]:
    return {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}, **options}


@pytest.fixture
def preprocessor() -> Preprocessor:
    return Preprocessor(settings(), SHAPE, "clip")


@pytest.fixture
def pictures(make_image: MakeImage) -> list[Image.Image]:
    sizes = [(8, 8), (13, 9), (5, 20), (7, 7), (30, 31), (8, 9)]
    modes = ["RGB" if mode in {"P", "1"} else mode for mode in MODES]
    plain = [
        make_image(seed, size, mode)
        for seed, size, mode in zip(range(6), sizes, modes, strict=True)
    ]
    return [image.convert(mode) for image, mode in zip(plain, MODES, strict=True)]


@pytest.fixture
def spoil(tmp_path: Path, rows: Rows, write_parquet: WriteParquet) -> Callable[[Any, Any], str]:
    """Write the rows with other data (... for unchanged) and another label in row 11."""

    def write(data: Any, label: Any) -> str:
        bad = (rows[11][0] if data is ... else data, label)
        return write_parquet(tmp_path / "bad.parquet", [*rows[:11], bad, *rows[12:]])

    return write


@pytest.mark.parametrize("options", [{}, {"do_rescale": False}, {"do_normalize": False}])
def test_pixels_match_transformers(pictures: list[Image.Image], options: dict[str, Any]) -> None:
    preprocessor = Preprocessor(settings(**options), SHAPE, "clip")
    expected = CLIPImageProcessorPil(**settings(**options))(pictures, return_tensors="pt")
    pixels = preprocessor.normalize(preprocessor.resize(pictures, "row", 0))
    torch.testing.assert_close(pixels, expected["pixel_values"].float(), rtol=1e-6, atol=1e-6)


def test_a_grey_model_sees_one_channel(pictures: list[Image.Image]) -> None:
    grey = settings(do_convert_rgb=False, image_mean=[0.3], image_std=[0.2])
    preprocessor = Preprocessor(grey, (1, 8, 8), "clip")
    expected = CLIPImageProcessorPil(**grey)(pictures[1], return_tensors="pt")["pixel_values"]
    pixels = preprocessor.normalize(preprocessor.resize(pictures[1:2], "row", 0))
    torch.testing.assert_close(pixels, expected)
    assert preprocessor.resize(pictures, "row", 0).shape == (6, 1, 8, 8)


def test_settings_of_a_saved_clip_processor_are_read(base: Path, tmp_path: Path) -> None:
    tokenizer = CLIPProcessor.from_pretrained(base).tokenizer
    processor = CLIPProcessor(CLIPImageProcessorPil(**settings()), tokenizer)
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    preprocessor = ClipDirectory.open(str(tmp_path), "clip").preprocessor
    assert preprocessor is not None
    assert preprocessor["size"] == {"shortest_edge": 8}


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(CheckpointError, match="clip: invalid preprocessor"):
        Preprocessor({"size": "large"}, SHAPE, "clip")


def test_rows_come_in_order_with_their_labels(
    dataset: dict[str, Any], rows: Rows, preprocessor: Preprocessor
) -> None:
    images = read_images(dataset["test"], preprocessor, classes=3)
    assert images.pixels.shape == (20, *SHAPE)
    assert images.labels.tolist() == [label for _, label in rows]
    train = read_images(dataset["train"], preprocessor, classes=3)
    assert torch.equal(train.pixels, images.pixels[:9])


@pytest.mark.parametrize("limit", [1, 9, 20, 99])
def test_a_limit_takes_the_first_rows(
    dataset: dict[str, Any], preprocessor: Preprocessor, limit: int
) -> None:
    images = read_images(dataset["test"], preprocessor, classes=3, limit=limit)
    everything = read_images(dataset["test"], preprocessor, classes=3)
    assert len(images) == min(limit, 20)
    assert torch.equal(images.pixels, everything.pixels[:limit])


def test_the_label_column_is_optional_without_classes(
    tmp_path: Path, rows: Rows, preprocessor: Preprocessor
) -> None:
    pq.write_table(pa.table({"image": [{"bytes": rows[0][0]}]}), tmp_path / "x.parquet")
    images = read_images(str(tmp_path / "x.parquet"), preprocessor, classes=None)
    assert images.labels is None


def test_a_missing_column_is_named(tmp_path: Path, rows: Rows, preprocessor: Preprocessor) -> None:
    pq.write_table(pa.table({"img": [{"bytes": rows[0][0]}]}), tmp_path / "x.parquet")
    with pytest.raises(FusionError, match=r"x\.parquet: missing column 'image'; columns: img"):
        read_images(str(tmp_path / "x.parquet"), preprocessor, classes=1)


def test_an_invalid_parquet_file_is_named(tmp_path: Path, preprocessor: Preprocessor) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(FusionError, match=r"invalid parquet file .*x\.parquet"):
        read_images(str(tmp_path / "x.parquet"), preprocessor, classes=1)


def test_a_file_with_broken_pages_is_named(
    tmp_path: Path, rows: Rows, write_parquet: WriteParquet, preprocessor: Preprocessor
) -> None:
    path = Path(write_parquet(tmp_path / "x.parquet", rows))
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(data)
    with pytest.raises(FusionError, match=r"cannot read .*x\.parquet from row 0 on"):
        read_images(str(path), preprocessor, classes=3)


def test_a_file_without_rows_is_named(
    tmp_path: Path, write_parquet: WriteParquet, preprocessor: Preprocessor
) -> None:
    path = write_parquet(tmp_path / "x.parquet", [])
    with pytest.raises(FusionError, match="contains no images"):
        read_images(path, preprocessor, classes=1)


@pytest.mark.parametrize(
    ("data", "label", "problem"),
    [
        (b"no image", 0, "the image cannot be decoded"),
        (None, 0, "the image has no bytes"),
        (..., 3, "invalid label 3, expected 0 to 2"),
        (..., -1, "invalid label -1"),
        (..., None, "invalid label None, expected an integer"),
    ],
)
def test_a_bad_row_is_named(
    spoil: Callable[[Any, Any], str],
    preprocessor: Preprocessor,
    data: Any,
    label: Any,
    problem: str,
) -> None:
    path = spoil(data, label)
    with pytest.raises(FusionError, match=rf"bad\.parquet, row 11: {problem}"):
        read_images(path, preprocessor, classes=3)


def test_a_truncated_image_is_named(
    tmp_path: Path, rows: Rows, write_parquet: WriteParquet, preprocessor: Preprocessor
) -> None:
    path = write_parquet(tmp_path / "cut.parquet", [rows[0], (rows[1][0][:-40], 1)])
    with pytest.raises(FusionError, match=r"cut\.parquet, row 1: the image cannot be decoded"):
        read_images(path, preprocessor, classes=3)


def test_an_image_that_does_not_fit_the_model_is_named(dataset: dict[str, Any]) -> None:
    preprocessor = Preprocessor({"do_resize": False, "do_center_crop": False}, SHAPE, "clip")
    with pytest.raises(FusionError, match=r"row 0: preprocessing gives the shape \[3, 12, 9\]"):
        read_images(dataset["test"], preprocessor, classes=3)


def test_rotated_photographs_are_turned(
    tmp_path: Path, make_image: MakeImage, write_parquet: WriteParquet, preprocessor: Preprocessor
) -> None:
    image = make_image(0, (8, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: upside down
    image.save(tmp_path / "x.png", exif=exif)
    path = write_parquet(tmp_path / "x.parquet", [((tmp_path / "x.png").read_bytes(), 0)])
    (pixels,) = read_images(path, preprocessor, classes=1).pixels
    assert torch.equal(pixels.flip(1, 2), preprocessor.resize([image], "row", 0)[0])
