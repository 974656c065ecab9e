"""The declaration of a quantisation in `config.json`, and the stored tensors that it describes.

Configurations and headers are untrusted: everything that an encoding relies on is checked here or
where it is used.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from reprlib import repr as shorten
from typing import TYPE_CHECKING, Any

import torch

from formats_quantised.source import DequantisedSource
from fusion_core.errors import CheckpointError
from fusion_core.weights import Origin, find_config_value, open_checkpoint, read_config, stamp_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from formats_quantised.encodings import Encoding
    from fusion_core import TensorInfo
    from fusion_core.weights import Location, WeightSource

_CONFIG = "config.json"
_KEYS = frozenset(("quantization_config",))
_DTYPE_KEYS = ("dtype", "torch_dtype")
#: The configurations of the language part of a model, which is the quantised one.
_LANGUAGE_KEYS = frozenset(("text_config", "language_config", "llm_config"))
#: The dtypes of weights, by their names in configurations.
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


@dataclass(frozen=True)
class Quantised:
    """A quantised checkpoint: its stored tensors and its declaration."""

    stored: WeightSource
    #: the value of `quantization_config`
    settings: dict[str, Any]
    #: the dtype in which the model computes, and in which tensors are decoded
    dtype: torch.dtype
    #: the configuration's file
    declared_in: Origin

    def setting(self, name: str, expected: type, default: object = None) -> Any:  # noqa: ANN401 - JSON
        """Return a setting, which may be null; raise `CheckpointError` for one of another type."""
        value = self.settings.get(name, default)
        if value is not None and not isinstance(value, expected):
            raise CheckpointError(
                f"{self.stored.describe()}: {_CONFIG} has the invalid {name} {shorten(value)}",
                hint="Save or download the model again.",
            )
        return value

    def pairs(self, suffix: str) -> Iterator[tuple[str, TensorInfo]]:
        """Yield each tensor whose name has a suffix, and its name without the suffix."""
        for name, info in self.stored.infos.items():
            if name.endswith(suffix) and name != suffix:
                yield name.removesuffix(suffix), info

    def info(self, name: str, *dtypes: torch.dtype) -> TensorInfo:
        """Return the description of a stored tensor that has to have one of some dtypes."""
        info = self.stored.infos.get(name)
        if info is None:
            raise self.error(name, "is missing")
        if dtypes and info.dtype not in dtypes:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise self.error(name, f"is {info.dtype}, expected {names}")
        return info

    def matrix(self, name: str, *dtypes: torch.dtype) -> TensorInfo:
        """Return the description of a stored matrix that has to have one of some dtypes."""
        info = self.info(name, *dtypes)
        if len(info.shape) != 2 or 0 in info.shape:  # noqa: PLR2004
            raise self.error(name, f"has shape {list(info.shape)}, expected a matrix")
        return info

    def check_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        """Raise `CheckpointError` unless a stored tensor has one of some shapes."""
        shape = self.info(name).shape
        if shape not in shapes:
            expected = " or ".join(str(list(shape)) for shape in shapes)
            raise self.error(name, f"has shape {list(shape)}, expected {expected}")

    def check_scales(self, dtype: torch.dtype, suffix: str, *companions: str) -> None:
        """Raise `CheckpointError` for a tensor of codes that lacks its scales.

        Tensors of the dtype whose names have the suffix are codes. The name of their scales has
        one of `companions` in its place.
        """
        for name, info in self.stored.infos.items():
            if info.dtype is not dtype or not name.endswith(suffix):
                continue
            scales = [name.removesuffix(suffix) + companion for companion in companions]
            if self.stored.infos.keys().isdisjoint(scales):
                kind = str(dtype).removeprefix("torch.")
                listed = " or ".join(map(repr, scales))
                raise self.error(name, f"is {kind}, and its scales are missing: expected {listed}")

    def decode(
        self, encodings: Iterable[Encoding], *, used: Iterable[str], label: str
    ) -> DequantisedSource:
        """Return the model with decoded tensors; the arguments are those of its source."""
        return DequantisedSource(
            self.stored, encodings, used=used, label=label, declared_in=self.declared_in
        )

    def error(self, name: str, problem: str) -> CheckpointError:
        """Return the error for a stored tensor that does not fit its declaration."""
        return CheckpointError(
            f"{self.stored.describe()}: tensor {name!r} {problem}",
            hint="The model is damaged, or of a variant that formats-quantised does not read.",
        )

    def refuse(self, variant: str) -> CheckpointError:
        """Return the error for a variant that is not read."""
        return CheckpointError(
            f"{self.stored.describe()}: {variant} is not supported, because its values have not "
            "been compared with those of a reference library",
            hint="Dequantise the model with the library that made it, or name the model that it "
            "was made from.",
        )


def open_quantised(location: Location) -> Quantised:
    """Open a checkpoint and read its declaration.

    Raises `CheckpointError` for a configuration without a quantisation.
    """
    path = location.directory / _CONFIG
    config = read_config(path)
    settings = find_config_value(config, _KEYS)
    if not isinstance(settings, dict):
        raise CheckpointError(f"{location.name}: expected a quantization_config in {_CONFIG}")
    content = json.dumps(config, sort_keys=True).encode()
    declared_in = Origin(
        files={_CONFIG: {"content_sha256": hashlib.sha256(content).hexdigest()}},
        stamps={path: stamp_of(path.stat())},
    )
    dtype = read_dtype(config, location)
    return Quantised(open_checkpoint(location), settings, dtype, declared_in)


def read_dtype(config: dict[str, Any], location: Location) -> torch.dtype:
    """Return the dtype that a configuration names, bfloat16 if it names none.

    The language part of a model precedes other parts, such as an encoder of images.
    """
    language = find_config_value(config, _LANGUAGE_KEYS)
    nested = (find_config_value(part, frozenset(_DTYPE_KEYS)) for part in (language, config))
    name = next(filter(None, (*map(config.get, _DTYPE_KEYS), *nested)), "bfloat16")
    if not isinstance(name, str) or name.removeprefix("torch.") not in DTYPES:
        raise CheckpointError(
            f"{location.name}: {_CONFIG} has the dtype {shorten(name)}, expected "
            f"{', '.join(DTYPES)}"
        )
    return DTYPES[name.removeprefix("torch.")]
