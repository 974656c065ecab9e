"""What is fused: a base, its experts, and how weights become a live model.

A pool is sources plus the knowledge of their kind: which class they belong to, which live parameter
a tensor is, which files (configuration, tokenizer) make a directory loadable.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import torch

from fusion_core.contracts.matrices import layout_of, matrices_by_name
from fusion_core.errors import RecipeError
from fusion_core.recipe.config import ComponentConfig
from fusion_core.weights import WeightSource, align
from fusion_core.weights.aligning.agreement import Agreement
from fusion_core.weights.origin import Origin
from fusion_core.weights.reading.quantised import refuse_quantised
from fusion_core.weights.source import base_or_first, check_unchanged, origins

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from fusion_core.hub import Wanted
    from fusion_core.recipe.config import AlignmentPolicy
    from fusion_core.weights.matrices import Matrices
    from fusion_core.weights.packing import Layout
    from fusion_core.weights.reading.assets import Files

ConfigT = TypeVar("ConfigT", bound=ComponentConfig)


class ModelPool(ABC, Generic[ConfigT]):
    """A base, experts, and how to build a live model of their kind.

    A subclass's constructor sets `base` (or None) and `experts`, by name and in the order in which
    results are summed, and reads no weights: sources are lazy. Merging needs nothing else; `build`
    and `parameters` serve evaluation and adaptive algorithms.
    """

    config_class: ClassVar[type[ComponentConfig]]
    #: whether `build` makes a model of as many layers as the weights have
    builds_any_depth: ClassVar[bool] = False
    base: WeightSource | None
    experts: Mapping[str, WeightSource]
    #: tensors of experts that alignment left out
    dropped: frozenset[str] = frozenset()
    #: what alignment let pass and a user should know
    warnings: tuple[str, ...] = ()
    #: the experts as they were, in a pool that holds what a transform made of them
    _untransformed: Mapping[str, WeightSource] | None = None

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @abstractmethod
    def build(
        self,
        weights: WeightSource,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
    ) -> nn.Module:
        """Return a live model with these weights, in evaluation mode, without a second copy.

        `build_model` does this for any class of models. `dtype` is that of parameters and stored
        buffers; None asks for the one in which the pool makes its models: fp32 as a rule, their own
        where they were given live. `weights` may be a checkpoint, a merge, or differences from the
        base. Raises `AlignmentError` for weights that do not fit.
        """

    def check_builds(self) -> None:
        """Raise a `FusionError` if `build` cannot make a model: asked before any work is done."""

    def parameters(self, module: nn.Module) -> Mapping[str, nn.Parameter]:
        """Map the sources' tensor names to the parameters of a model that `build` returned."""
        return dict(module.named_parameters(remove_duplicate=False))

    def matrices(self, name: str, shape: tuple[int, ...]) -> Matrices:
        """Say which matrices a floating-point tensor of the sources holds.

        Methods treat each matrix as a tensor of its own: a packed mixture is merged as the same
        experts stored one by one. Default: what names and shapes alone say of what torch and
        transformers store together. A pool that knows more, such as how the rows of a fused `qkv`
        are shared, says it here and leaves the rest to the default:

            def matrices(self, name, shape):
                if name.endswith("attn.qkv.weight"):
                    third = shape[0] // 3
                    return Matrices((Rows(q=third, k=third, v=third), Columns(shape[1])))
                return super().matrices(name, shape)
        """
        return matrices_by_name(name, shape)

    def assets(self, *, dtype: torch.dtype | None = None) -> Mapping[str, bytes | Path]:
        """Return the files that make a directory of weights loadable: name -> bytes, or a file.

        `dtype` is what the weights are written in, where that is not the base's.
        """
        del dtype
        return {}

    def beside(self) -> Mapping[str, Files]:
        """Return what lies beside each model's weights and says what it is, by the model's name.

        `config.json`, the tokenizer's files and the like: models are compared by them. Default:
        nothing is known.
        """
        return {}

    def task_of(self, expert: str) -> str:
        """Return the task that an expert was fine-tuned for; by default they share a name."""
        return expert

    def expert_of(self, task: str) -> WeightSource:
        """Return the first expert that was fine-tuned for a task, as it was before any transform.

        Raises `RecipeError` for a task that no expert was fine-tuned for.
        """
        experts = self._untransformed or self.experts
        tasks = {name: self.task_of(name) for name in experts}
        for name, its_task in tasks.items():
            if its_task == task:
                return experts[name]
        raise RecipeError(
            f"no expert was fine-tuned for task {task!r}",
            hint=f"The experts' tasks: {', '.join(dict.fromkeys(tasks.values()))}.",
        )

    def inputs(self) -> Mapping[str, Any]:
        """Identify the inputs for the provenance; default: by each source's name and `origin`."""
        return {name: _identity(source) for name, source in self.by_name.items()}

    def identity(self) -> Mapping[str, Any] | None:
        """Return what live models depend on beside their weights and `assets`, as JSON's data.

        What was measured of the base and the experts is shown again while all of it is the same;
        None if it is to be measured every time. Default: the pool's options.
        """
        return self.config.model_dump(mode="json")

    def licences(self) -> Mapping[str, str | None]:
        """Return the licence of every model by its name, `base` included; None where not known."""
        return dict.fromkeys(self.by_name)

    def downloads(self) -> Sequence[Wanted]:
        """Return the files on the hub that the weights are read from, those in the cache too."""
        found = (each for source in self.by_name.values() for each in origins(source))
        return [origin.wanted for origin in found if origin.wanted is not None]

    def with_sources(self, sources: Mapping[str, WeightSource]) -> Self:
        """Return this pool with other weights for the models that are named, `base` included."""
        clone = copy.copy(self)
        clone.base = None if self.base is None else sources.get("base", self.base)
        clone.experts = {name: sources.get(name, own) for name, own in self.experts.items()}
        return clone

    def transformed(self, experts: Mapping[str, WeightSource]) -> Self:
        """Return this pool with experts that a transform made of its own."""
        clone = copy.copy(self)
        clone._untransformed = self._untransformed or self.experts  # noqa: SLF001 - of this class
        clone.experts = experts
        return clone

    def aligned(self, policy: AlignmentPolicy) -> Self:
        """Return this pool with models that have the same keys and shapes: the base's.

        Under `alignment.vocab: pad` the base, too, gets the rows of the largest vocabulary.

        Raises `RecipeError` for a pool without experts, `CheckpointError` for quantised models,
        `AlignmentError` if models do not fit.
        """
        if not self.experts:
            raise RecipeError("the model pool has no experts", hint="Give it some models.")
        if self.base is not None and "base" in self.experts:
            raise RecipeError(
                "an expert is called 'base', which the base is called already",
                hint="Give that expert another name.",
            )
        refuse_quantised(self.by_name, self.beside())
        differences, warnings = self._agreement.judged(policy)
        clone = copy.copy(self)
        alignment = align(self.base, self.experts, policy, differences)
        clone.base, clone.experts = alignment.base, alignment.experts
        clone.dropped, clone.warnings = alignment.dropped, tuple(warnings)
        return clone

    def check_unchanged(self) -> None:
        """Raise `IntegrityError` if a file changed since the pool was made."""
        for source in (self.reference, *self.experts.values()):
            check_unchanged(source)

    @property
    def layout(self) -> Layout:
        """Where matrices lie in the tensors that are not merged as they are stored.

        A method that reads sources itself reads `pool.layout.unpacked(source)`. Raises
        `BrokenPluginError` if `matrices` does not fit the tensors.
        """
        return layout_of(self.reference.infos, self.matrices, type(self).__name__)

    @cached_property
    def _agreement(self) -> Agreement:
        return Agreement(self.base, self.by_name, self.beside())

    @property
    def by_name(self) -> Mapping[str, WeightSource]:
        """The base, if there is one, and the experts, by name."""
        return {**({} if self.base is None else {"base": self.base}), **self.experts}

    @property
    def reference(self) -> WeightSource:
        """The base or, without one, the first expert: it gives names, dtypes and buffers."""
        return base_or_first(self.base, self.experts)


def _identity(source: WeightSource) -> dict[str, Any]:
    origin = source.origin or Origin()
    known = {"files": dict(origin.files), "inputs": origin.inputs}
    return {"source": source.describe(), **{key: value for key, value in known.items() if value}}
