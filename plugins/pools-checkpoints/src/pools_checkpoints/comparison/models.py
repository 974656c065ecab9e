"""Models as their side files describe them. Each file is read once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from fusion_core.weights import parse_config
from pools_checkpoints.files import is_same_content, read_side_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fusion_core import WeightSource
    from fusion_core.weights import Files

#: Names of modules that classify vectors, where they lie at the top of a model.
_CLASSIFIERS = frozenset(
    (
        *("classifier", "classification_head", "score", "head", "fc", "logits_proj"),
        *("qa_outputs", "cls_classifier", "distillation_classifier", "classification_model"),
    )
)
#: A classifier is among this many outermost modules: `model.score.weight`, not a router in a layer.
_OUTERMOST = 2
_LONGEST_CLASS = 200


class Fact(NamedTuple):
    """A setting that a model states, and the file that states it."""

    value: Any
    file: str


@dataclass(frozen=True, eq=False)
class Model:
    """A model's name, its weights, and its side files."""

    name: str
    source: WeightSource
    files: Files
    _configs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name of this model in messages that compare others with it."""
        return "the base" if self.name == "base" else self.name

    def config(self, file: str) -> dict[str, Any]:
        """Parse a JSON file; a missing one is empty."""
        if file not in self._configs:
            self._configs[file] = parse_config(self.files, file, self.name) or {}
        return self._configs[file]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of its tensors by name."""
        return {name: info.shape for name, info in self.source.infos.items()}

    def content(self, file: str) -> bytes:
        """Read a file of at most the size of a tokenizer."""
        return read_side_file(self.files[file])

    @cached_property
    def classifier(self) -> frozenset[tuple[str, tuple[int, ...]]]:
        """The names and shapes of the tensors that classify vectors."""
        return frozenset(
            (name, info.shape)
            for name, info in self.source.infos.items()
            if not _CLASSIFIERS.isdisjoint(name.split(".")[:_OUTERMOST])
        )

    def shares(self, other: Model, files: Iterable[str]) -> bool:
        """Tell whether two models have the same bytes in some files, without parsing any."""
        return all(
            is_same_content(self.files.get(file), other.files.get(file))
            for file in {*self.files, *other.files}.intersection(files)
        )


@dataclass(frozen=True)
class Models:
    """The models that are compared, the base first where there is one."""

    by_name: Mapping[str, Model]

    @property
    def reference(self) -> Model:
        """The model whose names, head and side files the output has."""
        return next(iter(self.by_name.values()))


def architecture(config: Mapping[str, Any]) -> str:
    """Return the model class that a configuration names first, or an empty text."""
    classes = config.get("architectures")
    first = classes[0] if isinstance(classes, list) and classes else ""
    return first[:_LONGEST_CLASS] if isinstance(first, str) else ""
