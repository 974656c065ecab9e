"""Tiny CLIP models and parquet files."""

import json
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
)

CLASSNAMES = ["cat", "dog", "red car"]
_WORDS = ["<pad>", "<bos>", "<unk>", "a", "photo", "of", "the", "cat", "dog", "red", "car", "<eos>"]
_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
_TEXT = {
    **_TOWER,
    "num_attention_heads": 2,
    "vocab_size": len(_WORDS),
    "max_position_embeddings": 12,
    "bos_token_id": 1,
    "eos_token_id": len(_WORDS) - 1,
    "pad_token_id": 0,
}
_VISION = {**_TOWER, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}

Rows = Sequence[tuple[Any, Any]]


def _model(seed: int) -> CLIPModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = CLIPConfig(text_config=_TEXT, vision_config=_VISION, projection_dim=8)
        return CLIPModel(config).eval()


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(_WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", len(_WORDS) - 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def whole() -> CLIPModel:
    return _model(0)


@pytest.fixture(scope="session")
def base(whole: CLIPModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel directory with tokenizer and preprocessor."""
    directory = tmp_path_factory.mktemp("clip") / "base"
    whole.save_pretrained(directory)
    _tokenizer().save_pretrained(directory)
    CLIPImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
    ).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def experts(base: Path) -> dict[str, str]:
    """CLIPVisionModel directories; names of the second have no prefix, as in memory."""
    paths = {}
    for seed, name in enumerate(["hub", "memory"], 1):
        tower = _model(seed).vision_model
        assert isinstance(tower, CLIPVisionModel)
        tower.save_pretrained(base.parent / name)
        paths[name] = str(base.parent / name)
    rename_tensors(Path(paths["hub"]), lambda name: f"vision_model.{name}")
    return paths


def rename_tensors(directory: Path, rename: Callable[[str], str]) -> None:
    tensors = load_file(directory / "model.safetensors")
    renamed = {rename(name): tensor.clone() for name, tensor in tensors.items()}
    save_file(renamed, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def edited() -> Callable[[Path, Mapping[str, Any]], None]:
    """Change fields of a model's config.json."""

    def edit(directory: Path, fields: Mapping[str, Any]) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return edit


def png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def noise(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = torch.randint(0, 256, (*size[::-1], channels), generator=generator, dtype=torch.uint8)
    return Image.frombytes(mode, size, values.numpy().tobytes())


@pytest.fixture(scope="session")
def write_parquet() -> Callable[[Path, Rows], str]:
    """Write rows of (image bytes, label) in the format of the datasets library."""

    def write(path: Path, rows: Rows) -> str:
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table(
            {
                "image": pa.array([{"bytes": data, "path": None} for data, _ in rows], image),
                "label": pa.array([label for _, label in rows], pa.int64()),
            }
        )
        pq.write_table(table, path, row_group_size=7)
        return str(path)

    return write


@pytest.fixture(scope="session")
def make_image() -> Callable[..., Image.Image]:
    return noise


@pytest.fixture(scope="session")
def rows() -> list[tuple[bytes, int]]:
    """Twenty images of three classes."""
    return [(png(noise(number, (9, 12))), number % 3) for number in range(20)]


@pytest.fixture(scope="session")
def dataset(
    rows: Rows,
    write_parquet: Callable[[Path, Rows], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """A task with all three splits, as a recipe's options."""
    folder = tmp_path_factory.mktemp("images")
    return {
        "classnames": CLASSNAMES,
        "test": write_parquet(folder / "test.parquet", rows),
        "unlabeled": write_parquet(folder / "unlabeled.parquet", rows[5:]),
        "train": write_parquet(folder / "train.parquet", rows[:9]),
    }
