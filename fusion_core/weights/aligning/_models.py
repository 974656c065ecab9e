"""Models as their side files describe them: what is read of a file is read once."""

from __future__ import annotations

import filecmp
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fusion_core.weights.reading.assets import LARGEST_TOKENIZER, content_of, parsed
from fusion_core.weights.reading.containment import reading, size_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fusion_core.weights.reading.assets import Files
    from fusion_core.weights.source import TensorInfo, WeightSource

#: Names of modules that put a vector into classes, where they lie at the top of a model.
_CLASSIFIERS = frozenset(
    (
        *("classifier", "classification_head", "score", "head", "fc", "logits_proj"),
        *("qa_outputs", "cls_classifier", "distillation_classifier", "classification_model"),
    )
)
#: How many modules may surround a classifier: `model.score.weight`, not a router in a layer.
_OUTERMOST = 2


class Fact(NamedTuple):
    """What a model says of itself, and the file in which it says so."""

    value: Any
    file: str


@dataclass(frozen=True, eq=False)
class Model:
    """A model's name, its weights, and the files beside them."""

    name: str
    source: WeightSource
    files: Files
    _configs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def config(self, file: str) -> dict[str, Any]:
        """Parse a JSON file; a missing one is empty."""
        if file not in self._configs:
            self._configs[file] = parsed(self.files, file, self.name) or {}
        return self._configs[file]

    def content(self, file: str) -> bytes:
        """Read a file of at most the size of a tokenizer."""
        return content_of(self.files[file])

    @cached_property
    def classifier(self) -> frozenset[tuple[str, tuple[int, ...]]]:
        """The names and shapes of the tensors that put vectors into classes."""
        return frozenset(
            (name, info.shape)
            for name, info in self.source.infos.items()
            if not _CLASSIFIERS.isdisjoint(name.split(".")[:_OUTERMOST])
        )

    def has_tensors_of(self, other: Model) -> bool:
        """Tell whether two models have tensors of the same names and shapes."""
        return _shapes(self.source.infos) == _shapes(other.source.infos)

    def shares(self, other: Model, files: Iterable[str]) -> bool:
        """Tell whether two models have the same bytes in some files, without parsing any."""
        return all(
            is_same_content(self.files.get(file), other.files.get(file))
            for file in {*self.files, *other.files}.intersection(files)
        )


@dataclass(frozen=True)
class Models:
    """The models that are compared, the base first where there is one."""

    base: WeightSource | None
    by_name: Mapping[str, Model]

    @property
    def reference(self) -> Model:
        """The model whose names, head and side files the output has."""
        return next(iter(self.by_name.values()))

    def merges_classifier(self, *models: Model) -> bool:
        """Tell whether some models have a classifier that the output has, too."""
        own = self.reference.classifier
        return bool(own.intersection(*(model.classifier for model in models)))


def is_same_content(one: bytes | Path | None, other: bytes | Path | None) -> bool:
    """Tell whether two side files hold the same bytes; of large ones, only sizes are compared."""
    if one is None or other is None:
        return one is other
    sizes = {size_of(each) if isinstance(each, Path) else len(each) for each in (one, other)}
    if len(sizes) > 1 or max(sizes) > LARGEST_TOKENIZER:
        return False
    if isinstance(one, bytes) or isinstance(other, bytes):
        return content_of(one) == content_of(other)
    with reading(one):
        return filecmp.cmp(one, other, shallow=False)


def _shapes(infos: Mapping[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in infos.items()}
