"""Write the package's files: checkpoints, parquet tables, licences and checksums."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import fonts
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from model import MEAN, STD, State
from PIL import Image
from safetensors.torch import save_file
from tasks import TEMPLATES, Split, Task
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import CLIPModel, PreTrainedTokenizerFast

LABELLED = 256
_PREFIX = "vision_model."
_COMMON = Path("/usr/share/common-licenses")
_DOC = Path("/usr/share/doc")

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_FEATURES = {
    "info": {
        "features": {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    }
}
_SCHEMA = pa.schema(
    [("image", _IMAGE), ("label", pa.int64())], {"huggingface": json.dumps(_FEATURES)}
)

_OPTDIGITS = """\
The images of the task optdigits come from "Optical Recognition of Handwritten Digits" by
E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, doi:10.24432/C50P49, through
scikit-learn's load_digits (the test part of the original set, 1,797 images).

Licence: Creative Commons Attribution 4.0 International (CC BY 4.0),
https://creativecommons.org/licenses/by/4.0/legalcode

Changes: the 8x8 images were enlarged to 20x20 by bicubic interpolation and centred in 28x28.
"""
_WEIGHTS = """\
The weights in base/ and experts/, the images of the tasks textures and shapes, and the files that
describe them are the work of the fusion-core authors, licensed under the Apache License 2.0
(Apache-2.0.txt).
"""


def write(
    folder: Path,
    model: CLIPModel,
    words: PreTrainedTokenizerFast,
    tasks: Sequence[Task],
    experts: Mapping[str, State],
) -> None:
    """Replace ``folder`` with a complete set of assets."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write_base(folder / "base", model, words)
    for task in tasks:
        write_expert(folder / "experts" / task.name, model, experts[task.name])
        _write_task(folder / "tasks" / task.name, task)
    _write_json(folder / "tasks.json", _description(tasks))
    _write_licences(folder / "LICENCES")
    _write_sums(folder)


def size(folder: Path) -> int:
    """Return the size of all files in a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- checkpoints --------------------------------------------------------------------------------


def _write_base(folder: Path, model: CLIPModel, words: PreTrainedTokenizerFast) -> None:
    folder.mkdir(parents=True)
    config = model.config.to_dict() | {"architectures": ["CLIPModel"], "dtype": "float32"}
    _write_json(folder / "config.json", _clean(config))
    _save(folder, {name: weight.detach() for name, weight in model.named_parameters()})
    words.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    _write_json(settings, content)
    _write_json(folder / "preprocessor_config.json", _preprocessor())


def write_expert(folder: Path, model: CLIPModel, weights: State) -> None:
    """Write an expert's vision tower as a separate checkpoint."""
    folder.mkdir(parents=True)
    config = model.config.vision_config.to_dict()
    config |= {"architectures": ["CLIPVisionModel"], "dtype": "float32"}
    _write_json(folder / "config.json", _clean(config))
    _save(folder, {_PREFIX + name: weight for name, weight in weights.items()})


def _save(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write fp16 weights; ``dtype`` in the config makes a plain load return fp32."""
    halves = {
        name: tensor.to(torch.float16).contiguous() for name, tensor in sorted(tensors.items())
    }
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def _clean(config: dict[str, object]) -> dict[str, object]:
    """Return a config without fields that depend on the machine or the time."""
    drop = {
        "_name_or_path",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "transformers_version",
    }
    return {
        key: _clean(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in drop
    }


def _preprocessor() -> dict[str, object]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": False,
        "do_center_crop": False,
        "do_convert_rgb": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN],
        "image_std": [STD],
        "size": {"height": 28, "width": 28},
        "crop_size": {"height": 28, "width": 28},
    }


# --- tables -------------------------------------------------------------------------------------


def _write_task(folder: Path, task: Task) -> None:
    folder.mkdir(parents=True)
    parts = {"train": task.train.head(LABELLED), "unlabeled": task.validation, "test": task.test}
    for name, split in parts.items():
        if len(set(split.labels.tolist())) != len(task.names):
            msg = f"{task.name}/{name} lacks a class"
            raise ValueError(msg)
        pq.write_table(_table(split), folder / f"{name}.parquet", compression="zstd")


def _table(split: Split) -> pa.Table:
    images = [{"bytes": _png(image), "path": None} for image in split.images]
    return pa.table(
        {"image": pa.array(images, _IMAGE), "label": pa.array(split.labels.tolist())}, _SCHEMA
    )


def _png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.numpy(), mode="L").save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _description(tasks: Sequence[Task]) -> dict[str, object]:
    about = {
        task.name: {
            "classnames": task.classnames,
            "title": task.title,
            "source": task.source,
            "licence": task.licence,
        }
        for task in tasks
    }
    return {"templates": TEMPLATES, "tasks": about}


# --- licences -----------------------------------------------------------------------------------


def _write_licences(folder: Path) -> None:
    folder.mkdir()
    texts = {
        "weights.txt": _WEIGHTS,
        "optdigits-CC-BY-4.0.txt": _OPTDIGITS,
        "fashion-mnist-MIT.txt": _copyright("dataset-fashion-mnist"),
        "fonts.tsv": _font_table(),
        "OFL-1.1.txt": _paragraphs("fonts-gfs-didot", "SIL OPEN FONT LICENSE Version 1.1"),
        "Bitstream-Vera.txt": _copyright("fonts-dejavu-core"),
        "Apache-2.0.txt": (_COMMON / "Apache-2.0").read_text(),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)


def _font_table() -> str:
    """Return the table of font packages: name, version, licence, copyright lines."""
    rows = ["package\tversion\tlicence\tcopyright"]
    for package, licence in sorted(fonts.PACKAGES.items()):
        rows.append("\t".join([package, fonts.version(package), licence, _notices(package)]))
    return "\n".join(rows) + "\n"


def _notices(package: str) -> str:
    lines = re.findall(r"^.*copyright.*\d{4}.*$", _copyright(package), re.IGNORECASE | re.MULTILINE)
    return "; ".join(dict.fromkeys(" ".join(line.split()) for line in lines))


def _copyright(package: str) -> str:
    return (_DOC / package / "copyright").read_text(errors="replace")


def _paragraphs(package: str, start: str) -> str:
    text = _copyright(package)
    return text[text.index(start) :]


# --- helpers ------------------------------------------------------------------------------------


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write_sums(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}"
        for path in paths
    ]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")
