"""A checkpoint some of whose tensors are decoded while they are read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from formats_quantised.encodings import BandCache, BandEncoding
from fusion_core.errors import CheckpointError
from fusion_core.weights import Origin, WeightSource

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Executor

    import torch

    from formats_quantised.encodings import Encoding


class DequantisedSource(WeightSource):
    """The tensors of a quantised checkpoint, in the dtype that its configuration names.

    A range is decoded when it is read. Only the stored bytes that it depends on are read.
    """

    def __init__(
        self,
        stored: WeightSource,
        encodings: Iterable[Encoding],
        *,
        used: Iterable[str],
        label: str,
        declared_in: Origin | None = None,
    ) -> None:
        """Decode by `encodings`; other stored tensors keep their values, except those `used`.

        `used` are the stored tensors that encodings read, and those that only inference needs.
        `label` names the encoding for the provenance. `declared_in` are further files that the
        values depend on.

        Raises `CheckpointError` for a model without encodings, and for an encoding with the name of
        a tensor that it does not use.
        """
        self._stored = stored
        #: the encodings of the tensors that are quantised, by name
        self.encodings = {encoding.info.name: encoding for encoding in encodings}
        if not self.encodings:
            raise CheckpointError(
                f"{stored.describe()}: expected tensors in {label}, found none",
                hint="If the weights are plain, take quantization_config out of config.json. To "
                "dequantise packed weights, use the library that made them.",
            )
        hidden = set(used)
        infos = {name: info for name, info in stored.infos.items() if name not in hidden}
        if taken := self.encodings.keys() & infos.keys():
            raise CheckpointError(
                f"{stored.describe()}: tensor {min(taken)!r} is stored both quantised and plain",
                hint="Save or download the model again.",
            )
        self.infos = {**infos, **{name: code.info for name, code in self.encodings.items()}}
        self._label = f"{label}, {len(self.encodings)} of {len(self.infos)} tensors"
        self._declared_in = declared_in or Origin()
        self._cache = BandCache()

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Decode a range of a tensor."""
        if name not in self.encodings:
            return self._stored.read(name, start, stop)
        return self.encodings[name].read(self._stored, start, stop, self._cache)

    def stores_plain(self, name: str) -> bool:
        """Tell whether a tensor is among those that are not quantised."""
        return name in self.infos and name not in self.encodings

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Download the files, if they are on the hub."""
        del name  # the stored tensors have other names
        self._stored.prepare(executor)

    @property
    def kept_bytes(self) -> int:
        """The most bytes of the bands that are kept."""
        bands = [code for code in self.encodings.values() if isinstance(code, BandEncoding)]
        return max((band.kept_bytes for band in bands), default=0)

    def describe(self) -> str:
        """Return the path, or the repository at its commit."""
        return self._stored.describe()

    @property
    def origin(self) -> Origin:
        """The files, and how they encode the values."""
        origin, declared_in = self._stored.origin or Origin(), self._declared_in
        if origin.wanted is None:  # a commit identifies all files of a repository
            origin = replace(
                origin,
                files={**origin.files, **declared_in.files},
                stamps={**origin.stamps, **declared_in.stamps},
            )
        return replace(origin, decoded_from=self._label)
