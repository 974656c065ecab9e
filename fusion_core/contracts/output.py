"""`OutputEncoder`: a form in which a run writes its merge, other than a full model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from fusion_core.recipe.config import ComponentConfig
from fusion_core.weights import CheckpointSource
from fusion_core.weights.writing._shards import STEM

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor
    from pathlib import Path

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.progress import Progress
    from fusion_core.weights import TensorInfo, WeightSource
    from fusion_core.weights.reading.assets import Files

ConfigT = TypeVar("ConfigT", bound=ComponentConfig)


@dataclass(frozen=True)
class OutputParts:
    """The parts of a run's result, as an encoder receives them."""

    #: the lazy merge, before it is rounded to the dtypes in which it would be stored
    merged: WeightSource
    #: the merge as a full model stores it, rounded to these dtypes
    stored: WeightSource
    #: the aligned models
    pool: ModelPool[Any]
    #: the side files that a full model would have, by name
    files: Files
    executor: Executor
    progress: Progress
    #: an empty directory for temporary files, never part of the output
    scratch: Path


@dataclass(frozen=True)
class EncodedOutput:
    """The files of an encoded merge."""

    #: the tensors to write
    weights: WeightSource
    #: the other files, by name
    files: Files
    #: the name of the file of tensors, without its ending; only a `model` may have several files
    stem: str = STEM
    #: the loss of the encoding, as JSON data for the provenance
    record: Mapping[str, Any] = field(default_factory=dict)
    #: the loss of the encoding, in lines for people
    summary: tuple[str, ...] = ()


class OutputEncoder(ABC, Generic[ConfigT]):
    """The base class of forms in which a merge is written, such as an adapter.

    A recipe asks for a form by its name under `output`. A run creates the encoder and calls `check`
    while it plans, calls `encode` once after the merge, writes and commits the files, and reads
    them back by `decode`. Example::

        from fusion_core import ComponentConfig, EncodedOutput, OutputEncoder

        class HalvedConfig(ComponentConfig):
            factor: float = 0.5
            "The factor of every weight."

        class Halved(OutputEncoder[HalvedConfig]):
            config_class = HalvedConfig

            def encode(self, parts):
                return EncodedOutput(halve(parts.merged, self.config.factor), parts.files)
    """

    config_class: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def check(self, infos: Mapping[str, TensorInfo], pool: ModelPool[Any]) -> None:
        """Raise a `FusionError` if the merge cannot have this form, which headers show.

        `infos` describes the tensors of a full model, and `pool` is aligned.
        """

    @abstractmethod
    def encode(self, parts: OutputParts) -> EncodedOutput:
        """Return the files to write. Raises a `FusionError` for a merge that has no such form."""

    def decode(self, directory: Path, pool: ModelPool[Any]) -> WeightSource:
        """Read the weights of a written directory, for evaluation. Default: a full model."""
        del pool
        return CheckpointSource(directory)
